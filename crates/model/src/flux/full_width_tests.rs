//! One block of each sort at the published width, on few tokens.

use tch::{Device, Kind, Tensor};

use super::{DoubleBlock, RopeTable, SingleBlock};
use crate::FluxConfig;
use crate::params::Noise;
use crate::randomness::NormalStream;

const TEXT: i64 = 2;
const IMAGE: i64 = 4;

fn draw(name: &str, shape: &[i64]) -> Tensor {
    NormalStream::for_weight(7, name).tensor(shape).unwrap()
}

/// Rotations of text and image tokens, with the image tokens in the given order.
fn rope(order: &[i64]) -> RopeTable {
    let ids: Vec<i64> = [[0, 0, 0]; TEXT as usize]
        .into_iter()
        .chain(order.iter().map(|token| [0, token / 2, token % 2]))
        .flatten()
        .collect();
    let ids = Tensor::from_slice(&ids).view([1, TEXT + IMAGE, 3]);
    RopeTable::from_ids(&ids, &FluxConfig::flux_dev()).unwrap()
}

fn close(ours: &Tensor, expected: &Tensor) {
    let error = (ours - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(scale.is_finite() && error <= 1e-4 * scale, "{error:e} of {scale:e}");
}

/// Image tokens carry their place in their rotations alone: in another order, the same tokens come out in that order.
#[test]
fn full_width_blocks_do_not_care_about_the_order_of_image_tokens() {
    tch::set_num_threads(1);
    let config = FluxConfig::flux_dev();
    let hidden = config.hidden_size;
    let order = [2i64, 0, 3, 1];
    let reorder = |x: &Tensor| x.index_select(1, &Tensor::from_slice(&order));
    let (straight, shuffled) = (rope(&[0, 1, 2, 3]), rope(&order));
    let vec_act = draw("vec", &[1, hidden]);
    let (img, txt) = (draw("img", &[1, IMAGE, hidden]), draw("txt", &[1, TEXT, hidden]));
    tch::no_grad(|| {
        let mut noise = Noise::new(1, Kind::Float, Device::Cpu).unwrap();
        {
            // 1.4 GB of weights: gone before the next block is made.
            let block = DoubleBlock::build(&config, "double_blocks.0", &mut noise).unwrap();
            let (img_out, txt_out) = block.forward(&img, &txt, &vec_act, &straight, None).unwrap();
            assert_eq!(img_out.size(), [1, IMAGE, hidden]);
            assert!((&img_out - &img).norm().double_value(&[]) > 0.1, "the block does nothing");
            let (img_again, txt_again) =
                block.forward(&reorder(&img), &txt, &vec_act, &shuffled, None).unwrap();
            close(&img_again, &reorder(&img_out));
            close(&txt_again, &txt_out);
            let (unmoved, _) = block.forward(&reorder(&img), &txt, &vec_act, &straight, None).unwrap();
            let moved = (&unmoved - reorder(&img_out)).abs().max().double_value(&[]);
            assert!(moved > 1e-3, "places make no difference");
        }
        let block = SingleBlock::build(&config, "single_blocks.0", &mut noise).unwrap();
        let join = |img: &Tensor| Tensor::cat(&[&txt, img], 1);
        let out = block.forward(&join(&img), &vec_act, &straight, None).unwrap();
        let again = block.forward(&join(&reorder(&img)), &vec_act, &shuffled, None).unwrap();
        assert_eq!(out.size(), [1, TEXT + IMAGE, hidden]);
        close(&again.narrow(1, 0, TEXT), &out.narrow(1, 0, TEXT));
        close(&again.narrow(1, TEXT, IMAGE), &reorder(&out.narrow(1, TEXT, IMAGE)));
    });
}
