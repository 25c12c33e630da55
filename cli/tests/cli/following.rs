//! `crescendo watch` and `crescendo logs -f` over restarts of the controller.

use std::process::Stdio;

use crescendo_proto::v1::{JobState, LogLine};
use prost_types::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::fake::{Fake, Scene, Then, job};
use crate::{DEADLINE, crescendo, run};
use crescendo_testing::until;

#[tokio::test(flavor = "multi_thread")]
async fn watching_goes_on_from_the_revision_that_was_seen() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 0)];
    fake.part().watch.extend([
        Scene { sends: vec![job("uno-1", JobState::Running, 5, 1)], then: Then::Stay },
        Scene { sends: vec![job("uno-1", JobState::Running, 6, 2)], then: Then::Close },
        Scene { sends: vec![], then: Then::Break },
        Scene { sends: vec![job("uno-1", JobState::Succeeded, 7, 10)], then: Then::Stay },
    ]);
    let server = fake.serve().await;
    let address = server.address;
    let mut command = crescendo(home.path());
    command.args(["watch", "uno-1", "--controller", &address.to_string()]);
    let ((code, out, err), server) = tokio::join!(run(&mut command), async {
        until("the first stream is open", || fake.part().watches.len() == 1).await.expect("in time");
        server.kill();
        fake.serve_at(address).await
    });
    assert_eq!(code, 0, "{out}\n{err}");
    let revisions: Vec<u64> = fake.part().watches.iter().map(|watch| watch.from_revision).collect();
    assert_eq!(revisions.len(), 4);
    // The first message may or may not have arrived before the connection broke.
    assert!(revisions[1] == 5 || revisions[1] == 0, "{revisions:?}");
    assert_eq!((revisions[0], &revisions[2..]), (0, &[6, 6][..]));
    assert!(out.contains("the controller is back"), "{out}");
    assert!(out.ends_with("job uno-1 succeeded\n"), "{out}");
    server.kill();
}

/// Whoever reads a log of it sees that it lives, although nothing new comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_tells_nothing_new_is_told_of_all_the_same() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let running = job("uno-1", JobState::Running, 5, 1);
    fake.part().jobs = vec![running.clone()];
    fake.part().watch.push_back(Scene { sends: vec![running], then: Then::Stay });
    let server = fake.serve().await;
    let mut command = crescendo(home.path());
    command.args(["watch", "uno-1", "--controller", &server.address.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let alive = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if line.starts_with("running, stage-1: ") {
                return line;
            }
        }
    };
    let alive = tokio::time::timeout(DEADLINE, alive).await.expect("a line in time");
    assert!(alive.contains("step 1/10") && alive.contains("64/128 pairs"), "{alive}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_there_is_not_waited_for() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let server = fake.serve().await;
    let (code, _, err) =
        run(crescendo(home.path()).args(["watch", "x", "--controller", &server.address.to_string()])).await;
    assert_eq!((code, err.as_str()), (1, "error: there is no job x\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_get_a_line_of_json_for_each_update() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 0)];
    let sends = vec![job("uno-1", JobState::Running, 2, 1), job("uno-1", JobState::Failed, 3, 2)];
    fake.part().watch.push_back(Scene { sends, then: Then::Stay });
    let server = fake.serve().await;
    let args = ["watch", "uno-1", "-o", "json", "--controller", &server.address.to_string()];
    let (code, out, _) = run(crescendo(home.path()).args(args)).await;
    let updates: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = updates.iter().filter_map(|update| update["state"].as_str()).collect();
    assert_eq!((code, states), (4, vec!["running", "failed"]));
}

fn line(seconds: i64, message: &str) -> LogLine {
    LogLine {
        at: Some(Timestamp { seconds, nanos: 0 }),
        node_id: "trainer-0".into(),
        stage: "stage-1".into(),
        generation: 2,
        level: "INFO".into(),
        message: message.into(),
        ..LogLine::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_come_once_over_a_broken_connection() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Succeeded, 1, 10)];
    fake.part().logs.extend([
        Scene { sends: vec![line(1, "one"), line(2, "two")], then: Then::Break },
        Scene { sends: vec![line(1, "one"), line(2, "two"), line(4, "four")], then: Then::Break },
        // The controller before this one heard a line that it did not hand on.
        Scene {
            sends: vec![line(1, "one"), line(2, "two"), line(3, "three\u{7}"), line(4, "four")],
            then: Then::Close,
        },
    ]);
    let server = fake.serve().await;
    let address = server.address.to_string();
    let args = ["logs", "-f", "uno-1", "--tail", "5", "--controller", &address];
    let (code, out, err) = run(crescendo(home.path()).args(args)).await;
    assert_eq!(code, 0, "{err}");
    let expected = [(1, "one"), (2, "two"), (4, "four"), (3, "three ")]
        .map(|(at, text)| format!("1970-01-01T00:00:0{at}Z INFO  trainer-0/0 stage-1 g2: {text}\n"));
    assert_eq!(out, expected.concat());
    assert_eq!(fake.part().log_reads[0].tail_lines, 5);
    assert!(fake.part().log_reads.iter().all(|read| read.follow));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_before_the_tail_do_not_come_after_a_broken_connection() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Succeeded, 1, 10)];
    fake.part().logs.extend([
        Scene { sends: vec![line(2, "two"), line(3, "three")], then: Then::Break },
        Scene { sends: vec![line(1, "one"), line(2, "two"), line(3, "three")], then: Then::Close },
    ]);
    let server = fake.serve().await;
    let address = server.address.to_string();
    let args = ["logs", "-f", "uno-1", "--tail", "2", "--controller", &address];
    let (code, out, err) = run(crescendo(home.path()).args(args)).await;
    assert_eq!((code, out.lines().count()), (0, 2), "{out}{err}");
}
