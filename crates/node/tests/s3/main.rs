//! Object stores behind `s3://`: on a real server, and on one that misbehaves on demand.

mod faulty;

use std::collections::BTreeSet;
use std::sync::Arc;

use crescendo_node::objects::mark::{Expected, Mark, check_mark, read_mark};
use crescendo_node::objects::{self, ProbeError, check_conditional_create, with_causes};
use crescendo_testing::S3Server;
use faulty::{Fault, FaultyS3};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};

fn open(url: &str, environment: &[(String, String)]) -> Arc<dyn ObjectStore> {
    let found =
        |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    objects::open_with(url, &found).expect("open the store")
}

#[tokio::test]
async fn a_bucket_does_what_a_folder_does() {
    let Some(server) = S3Server::start_or_skip().await else { return };
    let store = open(&server.url("team/a"), &server.environment());
    check_conditional_create(&store).await.expect("conditional writes are honoured");

    store.put(&"jobs/j/pairs/unit-000001.tar".into(), "one".into()).await.expect("put");
    store.put(&"jobs/j/pairs/unit-000001.tar".into(), "two".into()).await.expect("replace");
    let create = |text: &'static str| {
        let store = store.clone();
        async move {
            let payload = PutPayload::from_static(text.as_bytes());
            store.put_opts(&"jobs/j/once".into(), payload, PutMode::Create.into()).await
        }
    };
    create("first").await.expect("create");
    assert!(matches!(create("second").await, Err(Error::AlreadyExists { .. })));

    let read = async |key: &str| store.get(&key.into()).await?.bytes().await;
    assert_eq!(read("jobs/j/once").await.expect("get"), "first");
    assert_eq!(read("jobs/j/pairs/unit-000001.tar").await.expect("get"), "two");
    assert!(matches!(read("jobs/j/none").await, Err(Error::NotFound { .. })));
    let range = store.get_range(&"jobs/j/once".into(), 1..3).await.expect("get a range");
    assert_eq!(range, "ir");

    // The probe has left nothing behind, and names have no prefix.
    let mut listed: Vec<String> =
        store.list(None).map_ok(|found| found.location.to_string()).try_collect().await.expect("list");
    listed.sort();
    assert_eq!(listed, ["jobs/j/once", "jobs/j/pairs/unit-000001.tar"]);
    let folder = store.list_with_delimiter(Some(&"jobs/j".into())).await.expect("list a folder");
    assert_eq!((folder.objects.len(), folder.common_prefixes.len()), (1, 1));

    // Another prefix is another store.
    let other = open(&server.url("team/b"), &server.environment());
    assert!(other.get(&"jobs/j/once".into()).await.is_err());

    for key in listed {
        store.delete(&key.as_str().into()).await.expect("delete");
    }
    assert!(store.list(None).try_collect::<Vec<_>>().await.expect("list").is_empty());
}

/// Answers that were paid for, and prompts, rest on it: of many writers of one key one makes it, and all others are told.
#[tokio::test]
async fn of_many_writers_of_one_key_one_makes_it() {
    // The losers of a race wait for seconds: the server asks for its lock at intervals.
    const RACES: usize = 6;
    const WRITERS: usize = 8;
    let Some(server) = S3Server::start_or_skip().await else { return };
    let store = open(&server.url("races"), &server.environment());
    for race in 0..RACES {
        let key: Key = format!("jobs/j/{race}").into();
        let writing = (0..WRITERS).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let made = store.put_opts(&key, writer.to_string().into(), PutMode::Create.into()).await;
                (writer, made)
            }
        });
        let mut winners = Vec::new();
        for written in futures::future::join_all(writing).await {
            match written {
                (writer, Ok(_)) => winners.push(writer.to_string()),
                (_, Err(Error::AlreadyExists { .. })) => {}
                (writer, Err(error)) => panic!("race {race}, writer {writer}: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "race {race}: {winners:?}");
        let kept = store.get(&key).await.expect("get").bytes().await.expect("read");
        assert_eq!(kept, winners[0], "race {race}");
    }
}

/// Nodes that begin together mark it together; what is missed later is the mark of this store and of no other.
#[tokio::test]
async fn a_bucket_is_marked_once_and_its_mark_is_missed() {
    const NODES: usize = 8;
    let Some(server) = S3Server::start_or_skip().await else { return };
    let expects = |store: Option<&Mark>| Expected {
        cluster: "a".to_owned(),
        store: store.map(|mark| mark.store.clone()),
    };
    // The bucket itself, and places in it that others have as well.
    for (prefix, held, began_empty) in [
        ("", None, true),
        ("team/a", Some("models/flux1-dev.safetensors"), true),
        ("team/b", Some("jobs/j/stage-1/pairs/unit-000000-l1.tar"), false),
    ] {
        let store = open(&server.url(prefix), &server.environment());
        if let Some(key) = held {
            store.put(&key.into(), "held".into()).await.expect("put");
        }
        let expected = expects(None);
        let marking = (0..NODES).map(|_| check_mark(store.as_ref(), &expected));
        let marks = futures::future::try_join_all(marking).await.expect("all may use it");
        let mark = &marks[0];
        assert!(marks.iter().all(|other| other == mark), "{prefix}: {marks:?}");
        assert_eq!(mark.began_empty, began_empty, "{prefix}: {mark:?}");
        assert_eq!(read_mark(store.as_ref()).await.expect("read").as_ref(), Some(mark), "{prefix}");
        assert_eq!(check_mark(store.as_ref(), &expects(Some(mark))).await.as_ref(), Ok(mark), "{prefix}");

        let place = Key::from("crescendo.store");
        let content = store.get(&place).await.expect("get").bytes().await.expect("read");
        store.delete(&place).await.expect("delete");
        let missed = check_mark(store.as_ref(), &expects(Some(mark))).await.expect_err("it is gone");
        assert!(missed.to_string().contains("is it mounted?") && !missed.is_passing(), "{prefix}: {missed}");
        assert_eq!(read_mark(store.as_ref()).await.expect("read"), None, "{prefix}: it is not made anew");
        store.put(&place, content.into()).await.expect("put");
        assert_eq!(check_mark(store.as_ref(), &expects(Some(mark))).await.as_ref(), Ok(mark), "{prefix}");
    }
    let elsewhere = server.url("team/b").replace("crescendo-test", "no-such-bucket");
    let elsewhere = open(&elsewhere, &server.environment());
    let error = check_mark(elsewhere.as_ref(), &expects(None)).await.expect_err("there is no such bucket");
    assert!(error.is_passing(), "{error}");
}

/// A collection deletes what it has listed before it asks for the rest of the list.
#[tokio::test]
async fn what_is_deleted_while_it_is_listed_hides_nothing() {
    // Three pages of a list.
    const OBJECTS: usize = 2_300;
    let Some(server) = S3Server::start_or_skip().await else { return };
    let store = open(&server.url("team/a"), &server.environment());
    let key = |n: usize| {
        let (job, unit) = (n % 3, n / 3);
        // Several folders, and files beside folders.
        match n % 5 {
            0 => format!("jobs/j{job}/stage-1/checkpoints/step-{unit:08}-g1/state.json"),
            1 => format!("jobs/j{job}/stage-1/{unit:06}.json"),
            _ => format!("jobs/j{job}/stage-1/pairs/unit-{unit:06}-l1.tar"),
        }
    };
    let put = futures::stream::iter(0..OBJECTS).map(|n| {
        let store = store.clone();
        async move { store.put(&Key::from(key(n)), "left".into()).await.map(drop) }
    });
    put.buffer_unordered(16).try_collect::<()>().await.expect("put");
    let mut listing = store.list(Some(&"jobs".into())).try_chunks(100);
    let mut seen = BTreeSet::new();
    let mut kept = BTreeSet::new();
    while let Some(page) = listing.try_next().await.expect("list") {
        for (n, found) in page.into_iter().enumerate() {
            let key = found.location.to_string();
            assert!(seen.insert(key.clone()), "{key} is listed twice");
            if n % 10 == 0 {
                kept.insert(key);
            } else {
                store.delete(&found.location).await.expect("delete");
            }
        }
    }
    let all: BTreeSet<String> = (0..OBJECTS).map(key).collect();
    let missing: Vec<_> = all.difference(&seen).take(5).collect();
    assert!(seen == all, "{} of {} are listed; not {missing:?}", seen.len(), all.len());
    let left = store.list(None).map_ok(|found| found.location.to_string());
    assert_eq!(left.try_collect::<BTreeSet<_>>().await.expect("list"), kept);
}

#[tokio::test]
async fn a_large_object_is_whole_or_not_there() {
    let Some(server) = S3Server::start_or_skip().await else { return };
    let store = open(&server.url(""), &server.environment());
    let content: Vec<u8> = (0..40u32 << 20).map(|n| (n % 249) as u8).collect();
    store.put(&"large".into(), content.clone().into()).await.expect("put");
    let read = store.get(&"large".into()).await.expect("get").bytes().await.expect("read");
    assert!(read == content, "it differs");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    let server = FaultyS3::start(Fault::IgnoresConditions).await;
    let store = open("s3://bucket/x", &server.environment());
    let error = check_conditional_create(&store).await.expect_err("it ignores the condition");
    assert!(matches!(error, ProbeError::Ignored) && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("ignores conditional writes"), "{error}");
}

#[tokio::test]
async fn a_store_without_conditions_is_refused() {
    let server = FaultyS3::start(Fault::KnowsNoConditions).await;
    let store = open("s3://bucket/x", &server.environment());
    let error = check_conditional_create(&store).await.expect_err("it knows no conditions");
    assert!(matches!(error, ProbeError::Unknown(_)), "{error}");
}

#[tokio::test]
async fn hiccups_are_waited_out() {
    let server = FaultyS3::start(Fault::FailsAtFirst(2)).await;
    let store = open("s3://bucket/x", &server.environment());
    store.put(&"a".into(), "content".into()).await.expect("the third try succeeds");
    assert_eq!(store.get(&"a".into()).await.expect("get").bytes().await.expect("read"), "content");
}

/// Two writers that met are told to try again; it is not known yet whether the key is there.
#[tokio::test]
async fn a_conflict_is_tried_again_and_never_taken_for_an_object() {
    let create = async |store: &Arc<dyn ObjectStore>| {
        let payload = PutPayload::from_static(b"paid for");
        store.put_opts(&"jobs/j/once".into(), payload, PutMode::Create.into()).await
    };
    let server = FaultyS3::start(Fault::Conflicts(1)).await;
    let store = open("s3://bucket/x", &server.environment());
    check_conditional_create(&store).await.expect("a probe that meets a conflict");
    create(&store).await.expect("made at the second try");
    assert_eq!(store.get(&"jobs/j/once".into()).await.expect("get").bytes().await.expect("read"), "paid for");
    assert!(matches!(create(&store).await, Err(Error::AlreadyExists { .. })), "it is there now");

    let server = FaultyS3::start(Fault::Conflicts(usize::MAX)).await;
    let store = open("s3://bucket/x", &server.environment());
    let error = create(&store).await.expect_err("it never ends");
    assert!(!matches!(error, Error::AlreadyExists { .. }), "{error:?}");
    assert!(with_causes(&error).contains("ConditionalRequestConflict"), "{}", with_causes(&error));
}

#[tokio::test]
async fn a_prefix_that_is_an_object_is_refused() {
    let Some(server) = S3Server::start_or_skip().await else { return };
    let environment = server.environment();
    let found =
        |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let whole = open(&server.url(""), &environment);
    whole.put(&"team/notes".into(), "an object".into()).await.expect("put");
    for (prefix, says) in
        [("team/notes", Some("team/notes")), ("team/notes/a", Some("team/notes")), ("team/b", None)]
    {
        let url = server.url(prefix);
        let verified = objects::verify_with(&url, &open(&url, &environment), &found).await;
        match (verified, says) {
            (Err(error @ ProbeError::PrefixIsObject { .. }), Some(key)) => {
                assert!(error.to_string().contains(key) && !error.is_retryable(), "{error}");
            }
            (Ok(()), None) => {}
            (other, _) => panic!("{prefix}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_no_secret() {
    let server = FaultyS3::start(Fault::Refuses).await;
    let store = open("s3://bucket/x", &server.environment());
    let mut texts = vec![format!("{store:?}"), store.to_string()];
    let put = store.put(&"a".into(), "content".into()).await.expect_err("put is refused");
    let get = store.get(&"a".into()).await.expect_err("get is refused");
    let list = store.list(None).try_collect::<Vec<_>>().await.expect_err("list is refused");
    let delete = store.delete(&"a".into()).await.expect_err("delete is refused");
    for error in [put, get, list, delete] {
        let text = with_causes(&error);
        assert!(text.contains("ExpiredToken"), "{text}");
        texts.extend([text, format!("{error:?}")]);
    }
    let probed = check_conditional_create(&store).await.expect_err("the probe is refused");
    assert!(probed.is_retryable());
    texts.extend([probed.to_string(), format!("{probed:?}")]);
    for text in texts {
        for secret in faulty::SECRETS {
            assert!(!text.contains(secret), "{secret} in: {text}");
        }
    }
}
