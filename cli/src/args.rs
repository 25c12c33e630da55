//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::artifact::choice::JobStage;
use crate::spec_edit::assignment::{Assignment, Axis};

pub use crate::common_args::{Common, Output};

const EXAMPLES: &str = "\
Try it on this machine:
  crescendo up                                   start a small cluster, until Ctrl-C
  crescendo submit examples/nano.yaml --watch    in a second terminal: train, with progress
  crescendo up --run examples/nano.yaml          both at once

Every day:
  crescendo validate job.yaml                    what is wrong with it, and what its defaults are
  crescendo submit job.yaml                      prints the job's id
  crescendo jobs                                 what runs, what waits and why
  crescendo submit job.yaml --matrix seed=1,2,3  a job for each value
  crescendo compare JOB JOB                      what differs between them, and what came of each
  crescendo watch JOB                            follow it; Ctrl-C stops watching, not the job
  crescendo explain JOB                          why it waits or failed, and what it would take
  crescendo checkpoints JOB -o json              for scripts
  crescendo cp JOB lora.safetensors              what it has trained

A cluster elsewhere:
  crescendo login --context lab --controller lab.example.com:7070 --tls-ca lab-ca.pem
  crescendo context use lab                      from now on commands go there
  crescendo doctor                               what is wrong with this machine, its files, the controllers

Exit codes:
  0  done
  1  it failed
  2  wrong use of the command line
  3  the job spec is not valid
  4  the job failed or was cancelled (submit --watch, watch, up --run)
  5  the controller cannot be reached
  6  not allowed: no login, or one that may not do this
  130  interrupted from the keyboard";

/// Trains subject-driven image generation in stages, on a cluster or on this machine.
#[derive(Debug, Parser)]
#[command(name = "crescendo", version, after_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster on this machine: a controller, curators and trainers, as processes on loopback.
    Up(UpArgs),
    /// Check a job spec without a cluster and print it with every default filled in.
    ///
    /// Where `up` runs a cluster on this machine, what that would warn of is said as well: bf16 on a processor that is slow
    /// at it, for one.
    Validate(FileArgs),
    /// Submit a job spec; prints the job's id.
    Submit(SubmitArgs),
    /// List jobs, newest first.
    Jobs(JobsArgs),
    /// Show one job with its stages.
    Get(GetArgs),
    /// Show what differs in the specs of jobs, and what came of each.
    Compare(CompareArgs),
    /// Explain why a job waits, or failed, and what it would take.
    Explain(JobArgs),
    /// Follow a job until it ends. A restart of the controller does not matter.
    Watch(JobArgs),
    /// Print the log lines of a job's processes.
    Logs(LogsArgs),
    /// Stop a job for good. Its checkpoints stay.
    Cancel(CancelArgs),
    /// Have a job save and give its slots back, until it is resumed.
    Pause(PauseArgs),
    /// Let a paused job go on, from where it was.
    Resume(JobArgs),
    /// Have a failed job tried again, from its newest checkpoint and with the pairs that it has.
    Retry(JobArgs),
    /// Note something on a job, for whoever looks at it: `crescendo get` shows it, with your name and the time.
    Note(NoteArgs),
    /// Submit a job that trains on from where one that has ended stopped, with its optimizer and its pairs.
    Continue(ContinueArgs),
    /// Delete a job that has ended: its files and its records. A line of what it was stays.
    Delete(DeleteArgs),
    /// Show where a job came from and what it made, also once it is deleted.
    Lineage(JobArgs),
    /// List the nodes of the cluster, or forget one that is gone.
    Nodes(NodesArgs),
    /// Show the queues with what they are sure of, use, borrow and wait for, and the tenants' shares.
    Queues,
    /// Show how many slot-hours each tenant has used, by month.
    Usage(UsageArgs),
    /// Empty a node: it gets no new work, and what it works on goes on elsewhere.
    Drain(DrainArgs),
    /// List a job's checkpoints, oldest first; or mark one to be kept.
    Checkpoints(CheckpointsArgs),
    /// Copy what a job has trained out of the object store, verified.
    Cp(CpArgs),
    /// Show a stage's pairs, accepted and rejected, with scores and reasons; --sheet makes a page of pictures.
    Pairs(PairsArgs),
    /// Show what was drawn with a job's checkpoints, and the loss on held-out pairs; --sheet makes a grid of pictures.
    Samples(SamplesArgs),
    /// Find and remove what lies in the object store and no record names.
    #[command(subcommand)]
    Objects(ObjectsCommand),
    /// Forget what language models have answered, so that they are asked again.
    #[command(subcommand)]
    Curation(crate::commands::curation::CurationCommand),
    /// Make and check subject libraries: pictures, and what captions call what they show.
    #[command(subcommand)]
    Library(crate::commands::library::LibraryCommand),
    /// Choose clusters, and how to log in to each.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Try a token and keep it for a context. It is read from standard input, or asked for.
    Login(LoginArgs),
    /// Show who you are to the controller.
    Whoami,
    /// Check this machine, its files and the cluster, and say what to do about what is wrong.
    Doctor(DoctorArgs),
    /// Write the completion script of a shell to standard output.
    Completion(CompletionArgs),
    /// Write man pages, one a command.
    Man(ManArgs),
    /// Make and renew the certificates of a release that has no other issuer.
    #[command(subcommand)]
    Certificates(crate::commands::certificates::CertificatesCommand),
    /// Make static tokens for people and services.
    Token(crate::commands::token::TokenArgs),
    /// Draw pictures from a prompt and references (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Generate(Rest),
    /// Hold the model to reference numbers (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Parity(Rest),
    /// Score drawings of a benchmark (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Eval(Rest),
    /// Tell what a weight file is, or what is wrong with it, without loading it (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Inspect(Rest),
    /// Convert LoRA files for other loaders (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Lora(Rest),
    /// Time the training step on this machine (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Write a report with curves and pictures of a job (crescendo-workbench).
    #[command(disable_help_flag = true)]
    Report(Rest),
}

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// First month that is shown, e.g. 2026-01.
    #[arg(long, value_name = "YYYY-MM")]
    pub from: Option<String>,
    /// Last month that is shown.
    #[arg(long, value_name = "YYYY-MM")]
    pub to: Option<String>,
    /// Write comma-separated values, for spreadsheets and accounts.
    #[arg(long)]
    pub csv: bool,
}

#[derive(Debug, Args)]
pub struct NodesArgs {
    #[command(subcommand)]
    pub action: Option<NodesAction>,
}

#[derive(Debug, Subcommand)]
pub enum NodesAction {
    /// Forget a node that is gone for good: it is not listed or waited for any more. One that is connected stays.
    Forget {
        /// The node, as `crescendo nodes` names it.
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum ObjectsCommand {
    /// Remove leftovers: checkpoint folders of attempts that died, shards of leases that were lost, halves of files.
    Collect(CollectArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
A leftover lies below jobs/, is older than the controller's --collect-grace-hours, belongs to nothing that is under way, and no
record names it. A curator lists and deletes, and the controller says of each object whether it is one. The controller that
leads does the same by itself every --collect-every-hours.

Examples:
  crescendo objects collect --dry-run            what would be removed
  crescendo objects collect --job JOB -o json")]
pub struct CollectArgs {
    /// Remove nothing, only list.
    #[arg(long)]
    pub dry_run: bool,
    /// Only what this job has left.
    #[arg(long, value_name = "JOB")]
    pub job: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Gangs with ranks there save a checkpoint and leave, without a step lost; they are placed on other nodes, or wait. Curation and
serving go to other curators. It stays so, also when the node is started again, until --undo.")]
pub struct DrainArgs {
    /// The node, as `crescendo nodes` names it.
    pub node: String,
    /// Give it work again.
    #[arg(long)]
    pub undo: bool,
}

#[derive(Debug, Args)]
pub struct FileArgs {
    /// Job spec, YAML; `-` for standard input.
    pub file: PathBuf,
    /// Set a field before the spec is checked, e.g. seed=7 or resources.gpus=4; several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<Assignment>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A path is written as problems name it, e.g. stages[0].train.learningRate; what does not begin with metadata or spec is below spec.
A value is YAML on one line; what would be several values there is taken as text. The rest of the file stays as it is.

With --matrix there is a job for each combination of the values, the last --matrix varying fastest. They are called NAME-1,
NAME-2 and so on, and have the label group=GROUP. All of them are checked before the first is submitted. The same command with
the same --group submits none twice: so a submit that was cut short is completed.

Examples:
  crescendo submit job.yaml
  crescendo submit job.yaml --watch
  crescendo submit job.yaml --set seed=7 --set metadata.labels.team=vision
  crescendo submit job.yaml --request-id nightly-2026-05-01    submits once, however often it is called
  crescendo submit job.yaml --matrix seed=1,2,3 --matrix stages[0].train.learningRate=1e-5,8e-5 --group rates
  crescendo compare --group rates                              what came of them")]
pub struct SubmitArgs {
    /// Job spec, YAML; `-` for standard input.
    pub file: PathBuf,
    #[command(flatten)]
    pub how: SubmitHow,
    /// Submit a job for each of these values; several times: for each combination, 256 at most.
    #[arg(long, value_name = "PATH=VALUE,VALUE", conflicts_with_all = ["watch", "request_id"])]
    pub matrix: Vec<Axis>,
    /// Value of the label `group` of the jobs of a --matrix [default: the name and six random characters].
    #[arg(long, value_name = "GROUP", requires = "matrix", value_parser = parse_group)]
    pub group: Option<String>,
}

/// How a job is submitted, whatever its spec comes from.
#[derive(Debug, Args)]
pub struct SubmitHow {
    /// Follow the job until it ends.
    #[arg(long, short)]
    pub watch: bool,
    /// Submits with the same id are one submit [default: a new random one].
    #[arg(long, value_name = "ID", value_parser = parse_request_id)]
    pub request_id: Option<String>,
    /// Set a field before the spec is checked, e.g. seed=7 or resources.gpus=4; several times.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<Assignment>,
}

/// It is a label's value and the beginning of request ids.
fn parse_group(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=63).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'".into())
    }
}

fn parse_request_id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=128).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'".into())
    }
}

#[derive(Debug, Args)]
pub struct JobsArgs {
    /// Only jobs in one of these states.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub state: Vec<State>,
    /// Only jobs whose name begins with this.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Only jobs of this tenant.
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    pub tenant: String,
    /// Only jobs with this label, and this value of it if one is given; several times: with all of them.
    #[arg(long = "label", value_name = "NAME[=VALUE]", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("a label is NAME or NAME=VALUE".into());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    Queued,
    Placing,
    Running,
    Paused,
    Preempting,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Shown are the state, and of each stage the steps done, the loss of the last step, the mean loss of the last 100 steps, the norm of
the gradients before clipping and the samples of the global batch per second, then the fields of the resolved specs that differ.
`?` is a figure that nobody knows, and `-` what a job does not have.

Where no rank reports any more, the figures are those of the history in the newest checkpoint, which is read as `crescendo cp`
reads files. The mean loss always is.

Examples:
  crescendo compare uno-7f3kq2 uno-b6m2xe
  crescendo compare --group rates                a row a job: its fields that differ, state, step and loss
  crescendo compare --group rates -o json")]
pub struct CompareArgs {
    /// Jobs, 2 to 16 of them.
    #[arg(value_name = "JOB", num_args = 2..=16, required_unless_present = "group", conflicts_with = "group")]
    pub jobs: Vec<String>,
    /// The jobs with the label group=GROUP, as `submit --matrix` makes them.
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    pub group: Option<String>,
    /// Folder or URL of the object store, to be read directly [default: that of the context or of the cluster that
    /// `crescendo up` runs, or through the controller].
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "DIR|URL")]
    pub object_store: Option<String>,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Show the fields of its spec that are not at their defaults, and what they would be.
    #[arg(long)]
    pub stated: bool,
}

#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job's id, as `submit` and `jobs` print it.
    pub job: String,
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Add a context: the cluster at --controller, with --tls-ca, --tls-cert and --token-file as given.
    #[command(after_help = "\
Examples:
  crescendo context add lab --controller lab-0:7070,lab-1:7070 --tls-ca lab-ca.pem --token-file ~/lab.token
  crescendo context add prod --controller prod.example.com:7070 --exec company-sso print-token")]
    Add(ContextAddArgs),
    /// Use a context from now on.
    Use(ContextNameArgs),
    /// List the contexts; the current one is marked.
    List,
    /// Remove a context, and the token that `crescendo login` kept for it.
    Remove(ContextNameArgs),
}

#[derive(Debug, Args)]
pub struct ContextNameArgs {
    /// Name of the context.
    #[arg(value_parser = crate::settings::file::check_name)]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ContextAddArgs {
    /// Name of the context.
    #[arg(value_parser = crate::settings::file::check_name)]
    pub name: String,
    /// Tenant whose jobs `crescendo jobs` lists, unless it is asked otherwise.
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Folder or URL of the cluster's object store, for what is read from there.
    #[arg(long, value_name = "DIR|URL")]
    pub object_store: Option<String>,
    /// Take the place of a context of the same name.
    #[arg(long)]
    pub replace: bool,
    /// Program that prints the token, and its arguments; all that follows belongs to it.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    pub exec: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The token is tried before it is kept. Which context gets it: the one named with --context, else the current one, else
`default`. With --controller the context is made, or changed to that cluster.

Examples:
  crescendo login < token
  crescendo login --context lab --controller lab.example.com:7070 --tls-ca lab-ca.pem")]
pub struct LoginArgs {
    /// Forget the token that was kept, instead.
    #[arg(long)]
    pub forget: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Looked at: the programs beside this one and their versions, libtorch, GPUs and NCCL (through crescendo-workbench),
certificates, the controllers (reachable, one leader, clocks, versions), the object store (with a small object that is
written, written again, read and deleted), the store if it is named, disks, shared memory, limits and ports.

Exit code 1 if anything has failed; warnings do not count.")]
pub struct DoctorArgs {
    /// This machine is to train on GPUs: none, or no CUDA, is a failure.
    #[arg(long)]
    pub gpu: bool,
    /// Also check this store: etcd:URL, with several URLs separated by commas, as the controllers are given it.
    #[arg(long, env = "CRESCENDO_STORE", value_name = "STORE")]
    pub store: Option<String>,
    #[command(flatten)]
    pub store_tls: StoreTls,
    /// Folder or URL of the object store [default: that of the context or of the cluster that `crescendo up` runs].
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "DIR|URL")]
    pub object_store: Option<String>,
    /// Folders whose disks need room: scratch, library, object store.
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub disk: Vec<PathBuf>,
    /// TCP ports that a process on this machine is to listen on.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<u16>,
}

/// Files for etcd at https:// URLs.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreTls {
    /// Root certificates that vouch for etcd, PEM; those of the system if absent.
    #[arg(long, env = "CRESCENDO_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Certificate that etcd knows the controllers by, PEM.
    #[arg(long, env = "CRESCENDO_STORE_CERT", value_name = "FILE")]
    pub store_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, env = "CRESCENDO_STORE_KEY", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Job ids are completed too, by asking the controller.

  bash:  crescendo completion bash > ~/.local/share/bash-completion/completions/crescendo
  zsh:   crescendo completion zsh > ~/.zfunc/_crescendo    (a folder of your fpath)
  fish:  crescendo completion fish > ~/.config/fish/completions/crescendo.fish")]
pub struct CompletionArgs {
    /// The shell.
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder to write them to; it is made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job's id.
    pub job: String,
    /// Go on with new lines until the job ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with at most this many of the last lines.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub tail: u32,
}

#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The job's id.
    pub job: String,
    /// Why; kept with the job.
    #[arg(long, default_value = "cancelled from the command line")]
    pub reason: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The ranks save a checkpoint after the step that they are in, and leave; it takes no step to pause and none to go on. What is not
saved within five minutes is lost with them, and the job goes on from the checkpoint before.

Examples:
  crescendo pause JOB --reason 'the demo needs the GPUs' --wait
  crescendo resume JOB")]
pub struct PauseArgs {
    /// The job's id.
    pub job: String,
    /// Why; kept with the job and shown.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Go on making its pairs.
    #[arg(long)]
    pub keep_curating: bool,
    /// Come back once its ranks have left.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A job, open or ended, has up to 32 notes; they go with it when it is deleted. The same text twice in a row is noted once.

Examples:
  crescendo note uno-7f3kq2 'blurred from step 800 on; next time with learningRate 1e-5'")]
pub struct NoteArgs {
    /// The job's id.
    pub job: String,
    /// One line of up to 1000 characters.
    pub text: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The new job has the last stage of JOB that has a checkpoint, and the stages after it. That stage starts from the newest checkpoint
with its optimizer, counts its own steps and begins its learning rate anew. It takes the pairs of JOB where their log is complete, and
else makes pairs as JOB did. What it takes cannot be deleted before it has ended. A job that has failed goes on to its own end with
`crescendo retry`.

Examples:
  crescendo continue uno-7f3kq2 --steps 2000
  crescendo continue uno-7f3kq2 --steps 2000 --name uno-longer --set stages[0].train.learningRate=1e-6
  crescendo continue uno-7f3kq2 --steps 2000 --dry-run         prints the spec of the new job")]
pub struct ContinueArgs {
    /// The job's id; it has ended.
    pub job: String,
    /// Steps to train on for, in the first stage of the new job.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=crescendo_core::spec::MAX_STEPS))]
    pub steps: u64,
    /// Name of the new job [default: that of the job].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Submit nothing, only print the spec.
    #[arg(long, conflicts_with_all = ["watch", "request_id"])]
    pub dry_run: bool,
    #[command(flatten)]
    pub how: SubmitHow,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Only a job that has ended is deleted, and only while no open job needs its files. Curators remove its files, then its records go;
`crescendo get JOB` says how far it is, and `crescendo lineage JOB` what stays known of it. Nothing takes a deletion back. Files that
are kept stay where they are and count as the tenant's; deleting the job again without the option removes them too.

Examples:
  crescendo delete JOB --dry-run                 what would go, with bytes
  crescendo delete JOB --keep-checkpoints")]
pub struct DeleteArgs {
    /// The job's id.
    pub job: String,
    /// Leave its checkpoints in the object store.
    #[arg(long)]
    pub keep_checkpoints: bool,
    /// Leave its pairs in the object store, and the candidates that were turned down.
    #[arg(long)]
    pub keep_pairs: bool,
    /// Leave its log lines and curves in the object store.
    #[arg(long)]
    pub keep_logs: bool,
    /// Delete nothing, only say what would go.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  crescendo checkpoints JOB
  crescendo checkpoints keep JOB stage-1 500     does not expire, and its job is not deleted by retention
  crescendo checkpoints release JOB stage-1 500"
)]
pub struct CheckpointsArgs {
    #[command(subcommand)]
    pub action: Option<CheckpointsAction>,
    /// The job's id.
    #[arg(required = true)]
    pub job: Option<String>,
    /// Only those of this stage.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub stage: String,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointsAction {
    /// Mark a checkpoint to be kept: it does not expire, and its job is not deleted.
    Keep(CheckpointArgs),
    /// Take the mark off again.
    Release(CheckpointArgs),
}

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// The job's id.
    pub job: String,
    /// Name of the stage.
    pub stage: String,
    /// Step of the checkpoint.
    pub step: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  crescendo cp JOB lora.safetensors                          the last checkpoint of the last stage
  crescendo cp JOB:stage-1 lora.safetensors --checkpoint 200
  crescendo cp JOB lora.safetensors --format comfyui

What comes is held to the SHA-256 in the registry, and is put in place as a whole. A folder that is reached from here, or a
bucket that the environment has a key of, is read directly; otherwise a curator reads the file and the controller hands it
on, which needs no key. Other formats than `published` are made by crescendo-workbench, in bf16.")]
pub struct CpArgs {
    /// The job, or one stage of it: JOB or JOB:STAGE [default: the last stage that has a checkpoint].
    #[arg(value_name = "JOB[:STAGE]")]
    pub of: JobStage,
    /// File to write, in a folder that is there.
    pub file: PathBuf,
    /// The checkpoint of this step [default: the last one].
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<u64>,
    /// Who is to read it.
    #[arg(long, default_value = "published")]
    pub format: LoraFormat,
    /// Replace a file that is there already.
    #[arg(long)]
    pub force: bool,
    /// Folder or URL of the object store, to be read directly [default: that of the context or of the cluster that
    /// `crescendo up` runs, or through the controller].
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "DIR|URL")]
    pub object_store: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoraFormat {
    /// UNO's own code, this program, ComfyUI: as it was saved.
    Published,
    /// ComfyUI and kohya's loaders.
    Comfyui,
    /// diffusers and PEFT.
    Diffusers,
}

impl LoraFormat {
    pub fn word(self) -> &'static str {
        match self {
            LoraFormat::Published => "published",
            LoraFormat::Comfyui => "comfyui",
            LoraFormat::Diffusers => "diffusers",
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  crescendo pairs JOB                        some pairs and some rejected candidates, spread over the log
  crescendo pairs JOB --rejected -o json     why candidates were turned down
  crescendo pairs JOB --sheet pairs.html     what the filters do, at a glance
  crescendo pairs JOB --limit 1000000000     every pair
  crescendo pairs JOB --mark 12,40 --reason blurred
  crescendo pairs JOB --marks                what is marked, by whom and when

The pictures are read from the object store, not through the controller. Of each unit the first two rejected candidates
of each reason are kept, if there was a picture to keep.

A marked pair is left out of training from the next epoch on. The marks are those of the log, for every stage that reads it.")]
pub struct PairsArgs {
    /// The job's id.
    pub job: String,
    /// Its stage [default: the last one that has pairs].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub stage: String,
    /// Only accepted pairs.
    #[arg(long, conflicts_with = "rejected")]
    pub accepted: bool,
    /// Only rejected candidates.
    #[arg(long)]
    pub rejected: bool,
    /// At most this many of each kind [default: 20; 96 on a sheet].
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Write an HTML page with pictures instead of a list.
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Folder or URL of the object store [default: that of the cluster that `crescendo up` runs].
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "DIR|URL")]
    pub object_store: Option<String>,
    /// Mark these pairs bad, by their numbers in the list.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["accepted", "rejected", "limit", "sheet"])]
    pub mark: Vec<u64>,
    /// Take the marks of these pairs back.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["accepted", "rejected", "limit", "sheet", "mark"])]
    pub unmark: Vec<u64>,
    /// Why, one line of at most 120 characters.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// List the marks.
    #[arg(long, conflicts_with_all = ["accepted", "rejected", "limit", "sheet", "mark", "unmark"])]
    pub marks: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  crescendo samples JOB                       what is drawn of which step, and the loss on held-out pairs
  crescendo samples JOB --sheet samples.html  a grid: what is drawn by step
  crescendo samples JOB --step 500 --out drawn

A curator reads the pictures and the controller hands them on: no key of the object store is needed. What is drawn is in
the spec: `samples`.")]
pub struct SamplesArgs {
    /// The job's id.
    pub job: String,
    /// Only those of this stage.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub stage: String,
    /// Only those of this step; may be given several times.
    #[arg(long, value_name = "STEP")]
    pub step: Vec<u64>,
    /// Write an HTML page with pictures instead of a list.
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Write the pictures into this folder, with their references.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Rest {
    /// Handed on as they are; `--help` shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub rest: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Everything lies in the folder given with --dir (./.crescendo if absent): records in store/, pair shards and checkpoints
in objects/, logs in logs/. When it is stopped (Ctrl-C), what trains saves a checkpoint first, and starting again in the same
folder goes on from there; a second Ctrl-C ends at once.

Examples:
  crescendo up                                one curator, two trainers with one slot each
  crescendo up --trainers 1 --slots 4
  crescendo up --store etcd:http://127.0.0.1:2379
  crescendo up --tenants tenants.yaml         with queues and limits: docs/scheduling.md
  crescendo up --run examples/nano.yaml       start, submit, watch, stop; exits with the job's code")]
pub struct UpArgs {
    /// Curator processes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub curators: u32,
    /// Trainer processes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub trainers: u32,
    /// Ranks that fit on one trainer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub slots: u32,
    /// What ranks compute on.
    #[arg(long, default_value = "auto")]
    pub device: Device,
    /// Where records are kept: embedded, or etcd:URL, with several URLs separated by commas.
    #[arg(long, default_value = "embedded", value_parser = parse_store)]
    pub store: Store,
    /// Folder that relative paths in a spec start from [default: the current folder].
    #[arg(long, value_name = "DIR")]
    pub library_root: Option<PathBuf>,
    /// What each tenant and queue may use, YAML; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Submit this spec, follow the job, then stop everything and exit with the job's code.
    #[arg(long, value_name = "FILE")]
    pub run: Option<PathBuf>,
    /// With --run: write the job as it ended to this file, JSON.
    #[arg(long, value_name = "FILE", requires = "run")]
    pub result: Option<PathBuf>,
    /// How long trainers may take to save a checkpoint when the cluster is stopped, e.g. 90s; 0s saves nothing.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_save_within)]
    pub save_within: std::time::Duration,
    /// Stop when standard input is closed, so that the cluster does not outlive the program that started it.
    #[arg(long)]
    pub stop_on_stdin_close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
}

impl Device {
    pub fn word(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    Embedded,
    /// As given, `etcd:URL[,URL]`.
    Etcd(String),
}

/// Whole seconds, as the nodes count them; at most a day.
fn parse_save_within(text: &str) -> Result<std::time::Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.subsec_nanos() != 0 || time.as_secs() > 86_400 {
        return Err("must be whole seconds, at most 24h".into());
    }
    Ok(time)
}

fn parse_store(text: &str) -> Result<Store, String> {
    match text.split_once(':') {
        None if text == "embedded" => Ok(Store::Embedded),
        Some(("etcd", urls)) if !urls.is_empty() => Ok(Store::Etcd(text.to_owned())),
        _ => Err("expected `embedded` or `etcd:URL[,URL]`".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn stores_are_embedded_or_etcd() {
        assert_eq!(parse_store("embedded"), Ok(Store::Embedded));
        assert_eq!(parse_store("etcd:http://a,http://b"), Ok(Store::Etcd("etcd:http://a,http://b".into())));
        assert!(parse_store("etcd:").is_err());
        assert!(parse_store("sqlite").is_err());
    }
}
