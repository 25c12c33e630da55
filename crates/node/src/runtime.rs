//! How a process starts, serves and stops, whatever its role.
//!
//! | module | content |
//! |---|---|
//! | [`args`] | command line arguments that all servers, and all nodes, have |
//! | [`background`] | a runtime whose threads give way |
//! | [`backoff`] | pure: how long to wait before try n |
//! | [`listen`] | listeners that stay on loopback unless told otherwise |
//! | [`ports`] | the file that says where a process listens |
//! | [`random`] | random numbers and ids that decide nothing |
//! | [`server`] | the one start of the three kinds of process |
//! | [`supervise`] | tasks that end with their process, and a process that ends with its critical tasks |

pub mod args;
pub mod background;
pub mod backoff;
pub mod listen;
pub mod ports;
pub mod random;
pub mod server;
pub mod supervise;
