//! Lists of clips: wrong lines, clips that are missing or broken.

use rayon::prelude::*;
use rescatter::config::VideoListConfig;
use rescatter::data::video::{Entry, Video, class_names, read_list};

use super::{Report, grow};

/// Opens every clip and decodes its first and last frame.
pub(super) fn walk(config: &VideoListConfig, report: &mut Report) {
    let classes = match class_names(config) {
        Ok(classes) => classes,
        Err(error) => return report.problems.push(error.into()),
    };
    report.name_classes(&classes);
    let entries = match read_list(config, &classes) {
        Ok(entries) => entries,
        Err(error) => return report.problems.push(error.into()),
    };
    report.images += entries.len();
    let look = |entry: rescatter::Result<Entry>| {
        let entry = entry?;
        let mut video = Video::open(&config.root.join(&entry.path))?;
        let last = video.frames() - 1;
        let images = video.read(&[0, last], None)?;
        Ok((entry.label as usize, last + 1, (images[0].width(), images[0].height())))
    };
    let results: Vec<rescatter::Result<_>> = entries.into_par_iter().map(look).collect();
    for result in results {
        match result {
            Ok((label, frames, (width, height))) => {
                report.measure((width as usize, height as usize));
                grow(&mut report.frames, frames);
                report.classes[label].count += 1;
                report.classes[label].images += 1;
            }
            Err(error) => report.problems.push(error.into()),
        }
    }
}
