//! What is pushed into an event file can be read by other means.

use crescendo_node::tfevents::{Event, VERSION, Value, begin, push};
use crescendo_testing::event_files::events;

#[test]
fn what_is_pushed_can_be_read() {
    let mut file = Vec::new();
    begin(&mut file, 1.5);
    let values = vec![Value::scalar("loss", 0.25), Value::picture("cup", (8, 4), vec![1, 2, 3])];
    push(&mut file, &Event::of_step(2.5, 7, values.clone()));
    let found = events(&file);
    assert_eq!(found[0].file_version.as_deref(), Some(VERSION));
    assert_eq!((found[1].step, found[1].wall_time), (7, 2.5));
    assert_eq!(found[1].summary.as_ref().expect("values").value, values);
}
