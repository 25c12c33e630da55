//! Who may do what, tried against a real controller over real sockets, with TLS.

mod cluster;
mod every_call;
mod limits;
mod oidc;
mod raw;
mod reach;
mod table;
mod tenants;
mod tokens;
