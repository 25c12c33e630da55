//! trainer-node
