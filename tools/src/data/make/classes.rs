//! Pictures of one shape each, in the layouts of classification sets.

use anyhow::Context;
use image::RgbImage;
use rayon::prelude::*;
use rescatter::config::VtabTask;
use rescatter::rng::{Purpose, Rng};

use super::super::shapes::{self, SHAPES};
use super::{Args, VALIDATION_STEP, create_dir, is_validation, write_jpeg};

const PORTRAIT_PX: usize = 64;
const CIFAR_PX: usize = 32;
/// Files that the training images of CIFAR-10 are spread over.
const CIFAR_BATCHES: usize = 5;

/// Picture `number` of a set, and its class: the classes take turns within a split, so that a small set has them all.
fn picture(args: &Args, set: u16, number: usize, side: usize) -> (RgbImage, usize) {
    let mut stream = Rng::new(args.seed).stream(Purpose::Synthetic, number as u64, set);
    let before = number / VALIDATION_STEP;
    let turn = if is_validation(number) { before } else { number - before };
    let kind = turn % SHAPES.len();
    (shapes::portrait(side, kind, &mut stream).image, kind)
}

/// `train/CLASS/*.jpg` and `val/CLASS/*.jpg`.
pub(super) fn folders(args: &Args) -> anyhow::Result<()> {
    for (split, class) in
        ["train", "val"].iter().flat_map(|split| SHAPES.map(|class| (split, class)))
    {
        create_dir(&args.output.join(split).join(class))?;
    }
    (0..args.count).into_par_iter().try_for_each(|number| {
        let (image, kind) = picture(args, 0, number, PORTRAIT_PX);
        let split = if is_validation(number) { "val" } else { "train" };
        let folder = args.output.join(split).join(SHAPES[kind]);
        write_jpeg(&image, &folder.join(format!("{number:05}.jpg")))
    })
}

/// `data_batch_1.bin` to `5`, `test_batch.bin` and `batches.meta.txt`.
pub(super) fn cifar(args: &Args) -> anyhow::Result<()> {
    create_dir(&args.output)?;
    let records: Vec<Vec<u8>> =
        (0..args.count).into_par_iter().map(|number| record(args, number)).collect();
    let mut files = vec![Vec::new(); CIFAR_BATCHES + 1];
    for (number, record) in records.into_iter().enumerate() {
        let turn = number - number / VALIDATION_STEP;
        let file = if is_validation(number) { CIFAR_BATCHES } else { turn % CIFAR_BATCHES };
        files[file].extend(record);
    }
    let names: String = SHAPES.map(|name| format!("{name}\n")).concat();
    write(args, "batches.meta.txt", names.into_bytes())?;
    for (file, bytes) in files.into_iter().enumerate() {
        let name = match file {
            CIFAR_BATCHES => "test_batch.bin".into(),
            _ => format!("data_batch_{}.bin", file + 1),
        };
        write(args, &name, bytes)?;
    }
    Ok(())
}

/// The label, then all red, all green and all blue values.
fn record(args: &Args, number: usize) -> Vec<u8> {
    let (image, kind) = picture(args, 3, number, CIFAR_PX);
    let plane = |channel: usize| image.pixels().map(move |pixel| pixel.0[channel]);
    std::iter::once(kind as u8).chain((0..3).flat_map(plane)).collect()
}

/// `TASK/images/*.jpg` with `TASK/train800.txt` and its company for every task.
pub(super) fn vtab(args: &Args) -> anyhow::Result<()> {
    VtabTask::ALL.into_par_iter().enumerate().try_for_each(|(place, task)| {
        let name = |file: &str| format!("{}/{file}", task.name());
        create_dir(&args.output.join(name("images")))?;
        let (mut train, mut val, mut test) = (String::new(), String::new(), String::new());
        for number in 0..args.count {
            let (image, kind) = picture(args, 4 + place as u16, number, PORTRAIT_PX);
            let path = format!("images/{number:05}.jpg");
            write_jpeg(&image, &args.output.join(name(&path)))?;
            let line = format!("{path} {}\n", kind % task.classes());
            match is_validation(number) {
                true => test += &line,
                // One training image in five chooses the values.
                false if number % (VALIDATION_STEP + 1) == 0 => val += &line,
                false => train += &line,
            }
        }
        let all = format!("{train}{val}");
        for (list, text) in [
            ("train800.txt", train),
            ("val200.txt", val),
            ("train800val200.txt", all),
            ("test.txt", test),
        ] {
            write(args, &name(list), text.into_bytes())?;
        }
        Ok(())
    })
}

fn write(args: &Args, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
    let path = args.output.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}
