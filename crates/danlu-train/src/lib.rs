//! Training: one file a regime, straight-line loops, what they share beside them.
//!
//! [`tokenisers`] learns the three tokenisers, [`pretrain`] the transformer. Both write into a run
//! folder ([`run::Run`]) that can be resumed, and report through a [`Watcher`]; nothing here
//! prints.

mod audit;
pub mod bench;
pub mod checkpoint;
mod codes;
pub mod debug;
mod distil;
pub mod doctor;
mod fault;
pub mod guard;
mod held_out;
mod incident;
mod incident_page;
mod learn;
pub mod lesson;
mod marginal;
mod media_page;
pub mod memory;
pub mod optim;
mod page;
pub mod pick;
pub mod pretrain;
mod rehearsal;
pub mod run;
mod session;
mod text_loss;
pub mod tokenisers;
pub mod track;
pub mod tune;
mod tune_page;
mod tuning;
mod upkeep;
mod watch;

pub use audit::{Audit, AuditLine, audit};
pub use codes::CodeTable;
pub use incident::{Cause, Incident, Seen, incidents};
pub use marginal::Marginals;
pub use media_page::tokeniser_page;
pub use page::run_page;
pub use run::{Begun, Run};
pub use watch::{Event, Silent, Watcher};
