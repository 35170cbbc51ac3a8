//! Looks through the states of a model: breadth first up to a number of states, so that the
//! first violation has the shortest trace, and by random walks for what lies deeper.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A system in small: states, steps between them, and what must hold in every state.
pub trait Model {
    /// Everything that distinguishes two moments.
    type State: Copy + Hash;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Every step that can be taken, in words, and what it leads to.
    fn steps(&self, state: &Self::State, steps: &mut Vec<(String, Self::State)>);

    /// # Errors
    /// What does not hold.
    fn judge(&self, state: &Self::State) -> Result<(), String>;
}

/// What an exploration has seen.
#[derive(Debug)]
pub struct Explored {
    /// Different states, or steps of walks.
    pub states: usize,
    /// The longest way from the start.
    pub depth: usize,
    /// Whether there was nothing left to look at.
    pub exhausted: bool,
    /// What does not hold, and the steps that led there.
    pub violation: Option<(String, Vec<String>)>,
}

struct Reached<S> {
    state: S,
    from: usize,
    step: String,
    depth: usize,
}

/// Breadth first, at most `states_max` states. States are told apart by a 64-bit hash.
pub fn breadth_first<M: Model>(model: &M, states_max: usize) -> Explored {
    let start = Reached { state: model.start(), from: 0, step: String::new(), depth: 0 };
    let mut known = HashMap::from([(hash(&start.state), ())]);
    let (mut reached, mut steps, mut at) = (vec![start], Vec::new(), 0);
    while at < reached.len() && reached.len() < states_max {
        model.steps(&reached[at].state, &mut steps);
        for (step, state) in steps.drain(..) {
            if known.insert(hash(&state), ()).is_some() {
                continue;
            }
            let depth = reached[at].depth + 1;
            reached.push(Reached { state, from: at, step, depth });
            if let Err(why) = model.judge(&state) {
                let trace = trace(&reached);
                let states = reached.len();
                return Explored { states, depth, exhausted: false, violation: Some((why, trace)) };
            }
        }
        at += 1;
    }
    let depth = reached.last().map_or(0, |last| last.depth);
    Explored { states: reached.len(), depth, exhausted: at == reached.len(), violation: None }
}

/// The steps to the last state.
fn trace<S>(reached: &[Reached<S>]) -> Vec<String> {
    let (mut trace, mut at) = (Vec::new(), reached.len() - 1);
    while at > 0 {
        trace.push(reached[at].step.clone());
        at = reached[at].from;
    }
    trace.reverse();
    trace
}

/// Walks of at most `length` steps, `steps_max` steps in all; the seed says which.
pub fn walk<M: Model>(model: &M, seed: u64, length: usize, steps_max: usize) -> Explored {
    let (mut chance, mut taken, mut deepest) = (seed, 0, 0);
    let mut steps = Vec::new();
    while taken < steps_max {
        let (mut state, mut trace) = (model.start(), Vec::new());
        while trace.len() < length {
            model.steps(&state, &mut steps);
            if steps.is_empty() {
                break;
            }
            let chosen = usize::try_from(draw(&mut chance) % steps.len() as u64).expect("an index");
            let (step, next) = steps.swap_remove(chosen);
            steps.clear();
            (state, taken) = (next, taken + 1);
            trace.push(step);
            if let Err(why) = model.judge(&state) {
                let depth = trace.len();
                return Explored { states: taken, depth, exhausted: false, violation: Some((why, trace)) };
            }
        }
        deepest = deepest.max(trace.len());
    }
    Explored { states: taken, depth: deepest, exhausted: false, violation: None }
}

fn hash(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
fn draw(chance: &mut u64) -> u64 {
    *chance = chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *chance;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
