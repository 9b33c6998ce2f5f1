//! The real clips beside the repository, where they are.

use std::path::Path;

use rescatter::config::load;
use rescatter::data;
use rescatter::rng::{Purpose, Rng};
use rescatter_heads::Config;

/// Every twentieth clip of both splits can be read as `config` says, `channels` planes each.
fn reads(test: &str, config: &str, clips: (usize, usize)) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut config: Config = load::load(&repository.join("configs").join(config), &[]).unwrap();
    let splits = [(&mut config.data.train, clips.0), (&mut config.data.val, clips.1)];
    for (split, count) in splits {
        let list = split.video_list.as_mut().unwrap();
        for path in [&mut list.root, &mut list.file] {
            *path = repository.join(&*path);
        }
        if let rescatter::config::ClassNames::File(path) = &mut list.classes {
            *path = repository.join(&*path);
        }
        if !list.file.exists() {
            println!("skipped: {test} because ../shared/data is not there");
            return;
        }
        if cfg!(not(feature = "video")) {
            println!("skipped: {test} because ffmpeg's libraries are not installed");
            return;
        }
        let set = data::video(split).unwrap();
        assert_eq!(set.len(), count);
        for index in (0..count).step_by(20) {
            let mut stream = Rng::new(0).stream(Purpose::Augment, index as u64, 0);
            let sample = set.get(index, &mut stream).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(sample.image.dim(), (3 * 8, 112, 112));
        }
    }
}

#[test]
fn motion_is_read() {
    reads("motion_is_read", "motion_vit_s14_dyt.yaml", (300, 90));
}

#[test]
fn surveillance_is_read() {
    reads("surveillance_is_read", "surveillance_vit_s14_dyt.yaml", (160, 45));
}
