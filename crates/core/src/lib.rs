//! The rules of Crescendo, free of time, threads and wires: ids, the job spec, the life of jobs and stages, the pair
//! log, the registry of checkpoints, placement, and the decision what to do next.
//!
//! ```text
//!   requests ──▶ transitions::* ─┐                       ┌─▶ writes ─▶ store
//!                                ├─▶ ClusterState ───────┤
//!   records  ──▶ apply ──────────┘   (durable)  │ decide ├─▶ sends  ─▶ nodes
//!                                               │        └─▶ waits  ─▶ people
//!   sessions ──▶ Observed (not durable) ────────┘
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`spec`] | the job spec: parsing, defaults, every problem at once |
//! | [`access`] | roles, and who may make which call |
//! | [`quotas`] | what a tenant may use |
//! | [`classes`] | which jobs may take the place of which |
//! | [`reach`] | which files, keys and addresses a tenant's specs may name |
//! | [`network`] | sizes of the networks, their parameters and arithmetic |
//! | [`mod@estimate`] | what a job comes to before anything of it runs |
//! | [`ids`] | checked names, generations, times |
//! | [`records`] | what is durable, one record a key |
//! | [`state`] | the records assembled |
//! | [`job`] | the life of a job as a table of transitions |
//! | [`log_reads`] | which stage's pair log a stage reads |
//! | [`pairlog`] | curation units, leases, the readable prefix |
//! | [`rejection`] | why candidates are turned down |
//! | [`object_keys`] | keys of the object store |
//! | [`deletion`] | ended jobs on their way out, and what stays of them |
//! | [`references`] | which jobs need files of another |
//! | [`mod@file`] | a file of a checkpoint |
//! | [`leftovers`] | what lies in the object store that no record names |
//! | [`note`] | what people have noted on a job |
//! | [`marks`] | pairs that people have marked bad, and what epochs leave out of a log |
//! | [`webhook`] | where the ends of a tenant's jobs are told |
//! | [`notices`] | which webhooks are to be told that a job has ended, and when |
//! | [`histogram`] | distributions of scores, which add up over units |
//! | [`transitions`] | what a caller may ask for, and when it is refused |
//! | [`secret`] | keys and tokens, and how they are kept out of text |
//! | [`mod@cooldown`] | curators that cannot open what a stage is made of |
//! | [`observed`] | what is seen of nodes and gangs; unknown is not failed |
//! | [`ranks`] | what ranks say of themselves: which one hangs, which one is slow |
//! | [`under_way`] | how far the units are that curators work on |
//! | [`arithmetic`] | what is kept of how nodes and gangs compute |
//! | [`precision`] | what `precision: auto` comes to, once for a stage |
//! | [`processor`] | on which kind of processor a stage is trained |
//! | [`blame`] | which nodes attempts have failed on lately |
//! | [`placement`] | gangs onto slots, whole or not at all |
//! | [`trace`] | which trace a job belongs to |
//! | [`decide`] | `decide(state, observed, now) -> plan` |
//! | [`explain`] | why a job is where it is, with numbers, and what it would take |
//! | [`unreadable`] | stored records that cannot be read, and what they halt |
//! | [`invariants`] | what must hold of every state |
//!
//! Everything here is a function of its arguments: no clock, no randomness, ordered maps only.

pub mod access;
pub mod accounts;
pub mod arithmetic;
pub mod blame;
pub mod classes;
pub mod cooldown;
pub mod decide;
pub mod deletion;
pub mod error;
pub mod estimate;
pub mod explain;
pub mod file;
pub mod histogram;
mod holdings;
pub mod ids;
pub mod invariants;
pub mod job;
pub mod learnt;
pub mod leftovers;
pub mod log_reads;
pub mod marks;
pub mod network;
pub mod note;
pub mod notices;
pub mod object_keys;
pub mod observed;
pub mod pairlog;
pub mod placement;
pub mod precision;
pub mod processor;
pub mod queues;
pub mod quotas;
pub mod ranks;
pub mod reach;
pub mod records;
pub mod references;
pub mod rejection;
pub mod sampling;
pub mod secret;
pub mod segment;
pub mod sizes;
pub mod spec;
pub mod standings;
mod starts;
pub mod state;
mod table;
pub mod trace;
pub mod transitions;
pub mod under_way;
pub mod unit;
pub mod unreadable;
pub mod usage;
pub mod webhook;

pub use error::RequestError;
