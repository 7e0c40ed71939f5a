//! Removes images that nothing uses when the disk fills up, least recently used first.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use runtime::Image;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Machine;
use crate::pods::Node;

const EVERY: Duration = Duration::from_secs(300);

/// Looks every few minutes until shut down.
pub(crate) async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    let mut used: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let running: HashSet<String> = node.runtime.list().await.into_iter().map(|c| c.image).collect();
        let images = node.runtime.images().await;
        let now = Instant::now();
        used.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            let last = used.entry(image.id.clone()).or_insert(now);
            if running.contains(&image.id) {
                *last = now;
            }
        }
        let machine = Machine::look(&node.config);
        let disk = (machine.disk, machine.disk_free);
        for image in victims(&images, &running, &used, disk, node.config.image_gc_percent) {
            match node.runtime.remove_image(&image.id).await {
                Ok(()) => tracing::info!(image = image.id, "removed an unused image: the disk fills up"),
                Err(error) => tracing::debug!(image = image.id, %error, "image stays"),
            }
        }
    }
}

/// Which images go, in order. Images without a registry's digest were loaded by hand and could not be had again.
fn victims<'a>(
    images: &'a [Image],
    running: &HashSet<String>,
    used: &HashMap<String, Instant>,
    (total, free): (u64, u64),
    (high, low): (u64, u64),
) -> Vec<&'a Image> {
    let taken = total.saturating_sub(free);
    if total == 0 || taken < total / 100 * high {
        return Vec::new();
    }
    let mut left = taken.saturating_sub(total / 100 * low);
    let mut unused: Vec<_> =
        images.iter().filter(|image| !running.contains(&image.id) && !image.digests.is_empty()).collect();
    unused.sort_by_key(|image| used.get(&image.id).copied());
    let chosen = unused.into_iter().take_while(|image| {
        let wanted = left > 0;
        left = left.saturating_sub(image.size);
        wanted
    });
    chosen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, pulled: bool) -> Image {
        Image {
            id: id.into(),
            tags: vec![],
            digests: if pulled { vec![format!("x@{id}")] } else { vec![] },
            size: 4,
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
        }
    }

    #[test]
    fn the_oldest_unused_images_go_until_there_is_room() {
        let images = ["new", "old", "older", "busy"].map(|id| image(id, true));
        let mut images = images.to_vec();
        images.push(image("loaded", false));
        let now = Instant::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        let used =
            [("new", ago(1)), ("old", ago(2)), ("older", ago(3)), ("busy", ago(9)), ("loaded", ago(9))];
        let used = used.into_iter().map(|(id, at)| (id.to_owned(), at)).collect();
        let running = HashSet::from(["busy".to_owned()]);
        let check = |free, expect: &[&str]| {
            let got = victims(&images, &running, &used, (100, free), (85, 80));
            assert_eq!(got.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), expect, "{free} free");
        };
        check(50, &[]);
        check(16, &[]);
        check(14, &["older", "old"]);
        check(0, &["older", "old", "new"]);
    }
}
