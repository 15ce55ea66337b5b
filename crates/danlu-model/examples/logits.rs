//! The likeliest next tokens of a model after given ids, and how it goes on.
//!
//!     cargo run --release -p danlu-model --example logits -- MODEL 504 3575 282 4649 314
//!
//! Prints one JSON object: `top`, pairs of id and logit, and `greedy`, the next eight ids.

#![allow(clippy::print_stdout, reason = "a program for a script")]

use danlu_model::import::open;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("expected a model and ids")?;
    let ids = args.map(|a| a.parse::<u32>()).collect::<Result<Vec<_>, _>>()?;
    let model = open(path.as_ref(), &danlu_ops::cpu_device())?;
    let mut cache = model.transformer.start();
    let mut new = ids;
    let (mut top, mut greedy) = (Vec::new(), Vec::new());
    for i in 0..8 {
        let logits = model.transformer.advance(&mut [(&mut cache, &new)]);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        if i == 0 {
            top = order[..10].iter().map(|&id| (id, logits[id as usize])).collect();
        }
        greedy.push(order[0]);
        new = vec![order[0]];
    }
    println!("{}", serde_json::json!({"top": top, "greedy": greedy}));
    Ok(())
}
