//! Circles of stages at work.

use super::*;

/// `again` reads what `work` publishes, and `work` what it gives back, up to `laps` times. Each message becomes `copies` at each pass.
struct Circle {
    world: World,
    door: Arc<TopicSpec>,
    passes: Arc<AtomicUsize>,
    running: Vec<(Running, Arc<Lane>)>,
}

fn sent(input: &Input) -> Emit {
    Emit {
        to: None,
        key: input.key().map(str::to_owned),
        headers: Vec::new(),
        payload: Bytes::from_static(b"x"),
    }
}

fn circle(room: u64, laps: u32, copies: usize) -> Circle {
    let world = World::new();
    let passes = Arc::new(AtomicUsize::new(0));
    let [work, again] = ["work", "again"].map(|name| {
        Arc::new(TopicSpec {
            dead_letters: Bound {
                messages: 100_000,
                bytes: 1 << 30,
            },
            ..TopicSpec::clone(&world.spec(name, room))
        })
    });
    let count = Arc::clone(&passes);
    let many = move |input: &Input, _: &Batch| {
        count.fetch_add(1, Ordering::SeqCst);
        let publish = (0..copies).map(|_| sent(input)).collect();
        Ok(outcome(publish, Vec::new(), Disposition::Done))
    };
    let one = |input: &Input, _: &Batch| Ok(outcome(vec![sent(input)], Vec::new(), Disposition::Done));
    let back = Destination {
        topic: Arc::new(TopicSpec {
            inbox: work.inbox.of_loops(),
            ..TopicSpec::clone(&work)
        }),
        laps: Some(laps),
        ..reader(&work)
    };
    let running = vec![
        run(&world, plan(&work, true, vec![reader(&again)], Duration::ZERO, many)),
        run(&world, plan(&again, true, vec![back], Duration::ZERO, one)),
    ];
    Circle {
        door: Arc::clone(&work),
        world,
        passes,
        running,
    }
}

impl Circle {
    async fn dead(&self) -> Vec<String> {
        let letters = self
            .world
            .backend
            .dead_letters(&self.world.swarm, None, 0, 100_000)
            .await
            .unwrap();
        let mut out: Vec<String> = letters.into_iter().map(|l| l.letter.reason).collect();
        out.sort();
        out
    }

    async fn end(self) {
        for (running, _) in self.running {
            running.stop().await;
        }
    }
}

#[tokio::test]
async fn a_message_goes_round_as_often_as_its_loop_says_and_is_then_set_aside_by_name() {
    let circle = circle(1_000, 3, 1);
    let (request, waiter) = circle.world.request("x", 30_000);
    let plain = circle.world.message("k", "x");
    circle.world.publish(&circle.door, vec![request, plain]).await;
    let reply = waiter.await.unwrap();
    let ReplyResult::Failed {
        stage, reason, detail, ..
    } = reply.result
    else {
        panic!("{reply:?}")
    };
    assert_eq!((stage.as_str(), reason.as_str()), ("again", "loop-bound"));
    assert!(detail.contains("`again` back to `work` 3 times"), "{detail}");
    circle.world.drained().await;
    // Once when they came, and three times round.
    assert_eq!(circle.passes.load(Ordering::SeqCst), 2 * 4);
    assert_eq!(circle.dead().await, ["loop-bound", "loop-bound"]);
    circle.end().await;
}

#[tokio::test]
async fn a_circle_whose_inboxes_are_all_full_does_not_wait_for_itself() {
    // Each message becomes 3^6 on its way, and there is room for a few only.
    let circle = circle(24, 6, 3);
    for n in 0..8 {
        let message = circle.world.message(&format!("k{n}"), "x");
        circle.world.publish(&circle.door, vec![message]).await;
    }
    let over = async {
        loop {
            let status = circle.world.backend.status(&circle.world.swarm).await.unwrap();
            // A batch that begins below a bound is taken whole: 16 messages in each of two partitions, threefold.
            for topic in &status {
                assert!(topic.unread <= 2 * 24 + 2 * 16 * 3, "{topic:?}");
            }
            if status.iter().all(|t| t.unread + t.parked == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), over)
        .await
        .expect("it waits for itself");
    let dead = circle.dead().await;
    let full = dead.iter().filter(|reason| *reason == "loop-full").count();
    assert!(full > 0, "the test fills no circle");
    assert!(
        dead.iter().any(|reason| reason == "loop-bound"),
        "nothing went round to the end"
    );
    circle.end().await;
}
