//! curator-node
