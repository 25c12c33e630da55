use super::*;
use std::path::Path;

fn spec() -> PromptSpec {
    PromptSpec {
        taxonomy: None,
        subjects: None,
        styles: Style::ALL.to_vec(),
        subjects_per_category: 50,
        scenes_per_subject: 8,
        endpoint: None,
    }
}

fn paths(root: &Path) -> PathResolver {
    PathResolver::new(root, "s3://elsewhere", crescendo_core::reach::Reach::Everything)
}

#[test]
fn the_default_book_is_large_and_always_the_same() {
    let book =
        |seed| PromptBook::open(&spec(), &[], seed, &paths(Path::new("/nowhere")), None).expect("open");
    let (a, b, c) = (book(3), book(3), book(4));
    assert!(a.subjects() > 60_000, "{}", a.subjects());
    assert_eq!(a.prompts(), 56 * a.subjects() as u64);
    let first = |book: &PromptBook| (0..50).map(|index| book.prompt(index)).collect::<Vec<_>>();
    assert_eq!(first(&a), first(&b));
    assert_ne!(first(&a), first(&c));
    for prompt in first(&a) {
        assert_ne!(prompt.scenes[0], prompt.scenes[1]);
        assert!(prompt.scenes.iter().all(|scene| scene.contains(&prompt.subject)), "{prompt:?}");
    }
}

#[test]
fn a_round_has_every_prompt_once_and_the_next_is_in_another_order() {
    let folder = tempfile::tempdir().expect("make a folder");
    std::fs::write(folder.path().join("subjects.txt"), "red cup\n\n  A Red Cup \nblue fox\nold map\n")
        .expect("write");
    let spec = PromptSpec {
        subjects: Some(SubjectList::File("subjects.txt".into())),
        scenes_per_subject: 3,
        ..spec()
    };
    let book = PromptBook::open(&spec, &[], 1, &paths(folder.path()), None).expect("open");
    assert_eq!((book.subjects(), book.prompts()), (3, 18));
    let round = |n: u64| (18 * n..18 * (n + 1)).map(|index| book.prompt(index)).collect::<Vec<_>>();
    let key = |prompt: &DiptychPrompt| (prompt.subject.clone(), prompt.scenes.clone());
    let different = |prompts: &[DiptychPrompt]| prompts.iter().map(key).collect::<BTreeSet<_>>();
    let (first, second) = (round(0), round(1));
    assert_eq!(different(&first).len(), 18);
    assert_eq!(different(&first), different(&second));
    assert_ne!(first, second);
    // The last index there is does no harm.
    assert_eq!(book.prompt(u64::MAX).category, book.prompt(u64::MAX).subject);
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("make a folder");
    let error = |spec: PromptSpec| {
        PromptBook::open(&spec, &[], 1, &paths(folder.path()), None).expect_err("it cannot").to_string()
    };
    let list = |subjects: &[&str]| PromptSpec {
        subjects: Some(SubjectList::List(subjects.iter().map(|s| (*s).to_owned()).collect())),
        ..spec()
    };
    assert_eq!(
        error(list(&["cup", "cup\u{202e}puc"])),
        "subject 2 (\"cup\\u{202e}puc\"): it holds control or direction characters"
    );
    assert_eq!(error(list(&[])), "there is no subject");
    let taxonomy = |path: &str| PromptSpec { taxonomy: Some(path.into()), ..spec() };
    assert!(error(taxonomy("none.yaml")).contains("none.yaml"));
    std::fs::write(folder.path().join("bad.yaml"), "version: 3").expect("write");
    assert_eq!(error(taxonomy("bad.yaml")), "taxonomy bad.yaml: version 3 is not 1");
    assert!(error(taxonomy("store:t.yaml")).contains("object store"));
    assert_eq!(
        error(PromptSpec { subjects_per_category: 50_000, ..spec() }).split(' ').nth(1),
        Some("subjects")
    );
    assert_eq!(
        error(PromptSpec { endpoint: Some("llm".into()), ..spec() }),
        "the spec has no endpoint `llm`"
    );
}
