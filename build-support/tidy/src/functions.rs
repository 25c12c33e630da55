//! How long functions are.

use std::path::Path;

use anyhow::{Context as _, Result};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A function and its lines, from its signature to its closing brace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    pub name: String,
    pub lines: usize,
}

/// The functions of a file that have more than `most` lines.
pub fn long(path: &Path, text: &str, most: usize) -> Result<Vec<Function>> {
    let syntax = syn::parse_file(text).with_context(|| format!("parse {}", path.display()))?;
    let mut finder = Finder { most, found: Vec::new() };
    finder.visit_file(&syntax);
    Ok(finder.found)
}

struct Finder {
    most: usize,
    found: Vec<Function>,
}

impl Finder {
    fn look(&mut self, signature: &syn::Signature, end: proc_macro2::Span) {
        let lines = end.end().line + 1 - signature.span().start().line;
        if lines > self.most {
            self.found.push(Function { name: signature.ident.to_string(), lines });
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.look(&function.sig, function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.look(&function.sig, function.block.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.look(&function.sig, block.span());
        }
        visit::visit_trait_item_fn(self, function);
    }
}
