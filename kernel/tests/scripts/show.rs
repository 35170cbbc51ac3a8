//! How the tablet scripts print what a core wants and says.

use ebla_kernel::entry::{Entry, Payload, SealRecord};
use ebla_kernel::ids::{Attempt, Pos, TabletId};
use ebla_kernel::op::{Body, Change, OpResult};
use ebla_kernel::tablet::{Answer, ApplyWhen, Effect, PeerInput, PeerMessage};

pub fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::Except { tablet: TabletId(7), to, epoch } => {
            format!("tell {to} with every promise of {epoch}")
        }
        Effect::Except { tablet, to, epoch } => {
            format!("tell {to} with every promise of {epoch} of {tablet}")
        }
        Effect::PersistPromise { epoch } => format!("persist promise {epoch}"),
        Effect::AnswerFence(answer) => {
            format!("answer fence {}: log ends at {}", answer.epoch, answer.end.pos)
        }
        Effect::Append { entry, when } => {
            let hidden = if *when == ApplyWhen::Safe { " (hidden)" } else { "" };
            format!("append {}{hidden}", show_entry(entry))
        }
        Effect::AppendCopies { entries } => format!("append copies {}", span(entries)),
        Effect::Apply { upto } => format!("apply up to {upto}"),
        Effect::Stream(stream) if stream.from > stream.upto => {
            format!("stream to {}: only Q {}", stream.to, stream.q)
        }
        Effect::Stream(stream) => {
            format!("stream to {}: {} to {}, Q {}", stream.to, stream.from, stream.upto, stream.q)
        }
        Effect::Send { to, epoch, message } => format!("send {to} {epoch}: {}", show_message(message)),
        Effect::Locate { seq } => format!("locate {seq}"),
        Effect::Truncate { keep } => format!("cut after {}", keep.pos),
        Effect::Diverged { at, .. } => format!("ALARM: the log differs at {at}, which is safe"),
        Effect::ProposeInSync(proposal) => {
            let verb = if proposal.change.add { "add" } else { "remove" };
            let replicas: Vec<String> = proposal.change.replicas.iter().map(ToString::to_string).collect();
            format!("propose to {verb} {} in version {}", replicas.join(" "), proposal.version)
        }
        Effect::Stage { seal, end } => format!("stage {} sealed at {}", show_seal(seal), end.pos),
        Effect::Unstage => "forget what is staged".into(),
        Effect::ProposeSplit(proposal) => {
            let ready: Vec<String> = proposal.ready.iter().map(|(id, _)| id.to_string()).collect();
            format!(
                "propose to commit {} sealed at {}, ready {}",
                proposal.attempt,
                proposal.seal.pos,
                ready.join(" ")
            )
        }
        Effect::Lease(terms) => {
            let sets: Vec<String> =
                terms.sets.iter().map(|set| format!("{} of {:?}", set.needed, set.runs)).collect();
            format!("lease needs {}", sets.join(" and "))
        }
        Effect::Serve { epoch } => format!("serve {epoch}"),
        Effect::StopServing { epoch, successor } => {
            let next = successor.map_or(String::new(), |successor| format!(", {successor} may follow"));
            format!("stop serving {epoch}{next}")
        }
        Effect::Reply { request, answer } => format!("{request}: {}", show_answer(answer)),
    }
}

fn show_seal(seal: &SealRecord) -> String {
    let children: Vec<String> =
        seal.children.iter().map(|child| format!("{} {}", child.tablet, child.range)).collect();
    format!("{} for {}", seal.attempt, children.join(" + "))
}

fn span(entries: &[Entry]) -> String {
    match entries {
        [] => "nothing".into(),
        [one] => one.pos.to_string(),
        [first, .., last] => format!("{} to {}", first.pos, last.pos),
    }
}

pub fn show_mail(from: u64, to: u64, input: &PeerInput) -> String {
    format!("{from} > {to} {}: {}", input.epoch, show_message(&input.message))
}

fn show_message(message: &PeerMessage) -> String {
    let q_text = |q: &Pos| if *q == Pos::ZERO { "none".into() } else { q.to_string() };
    match message {
        PeerMessage::Probe => "where does your log end?".into(),
        PeerMessage::Hello { end, epochs } => format!("it ends at {end}, epochs {epochs:?}"),
        PeerMessage::Append { prev, entries, q } => {
            format!("entries {} after {prev}, Q {}", span(entries), q_text(q))
        }
        PeerMessage::Ack { pos, q, ready: Attempt(0) } => format!("durable {pos}, knows Q {q}"),
        PeerMessage::Ack { pos, q, ready } => format!("durable {pos}, knows Q {q}, ready for {ready}"),
        PeerMessage::Refuse => "your epoch is over".into(),
        PeerMessage::CloseWanted { ts } => format!("close {ts}"),
    }
}

fn show_entry(entry: &Entry) -> String {
    format!("{} after {} at {}: {}", entry.pos, entry.prev, entry.ts, show_payload(&entry.payload))
}

fn show_answer(answer: &Answer) -> String {
    match answer {
        Answer::Committed(committed) => format!(
            "committed {} at {} level {}{}",
            committed.pos,
            committed.ts,
            committed.level,
            show_results(&committed.results)
        ),
        Answer::Reverted => "reverted".into(),
        Answer::Unknown => "unknown".into(),
        Answer::Reached => "reached".into(),
        Answer::Refused(refusal) => format!("refused: {refusal:?}"),
    }
}

fn show_results(results: &[OpResult]) -> String {
    let counters = results.iter().filter_map(|result| match result {
        OpResult::Done => None,
        OpResult::Counter(value) => Some(format!(" ={value}")),
    });
    counters.collect()
}

fn show_payload(payload: &Payload) -> String {
    match payload {
        Payload::EpochStart { replica, incarnation } => format!("epoch start by {replica} {incarnation}"),
        Payload::TokenFence { token } => format!("token fence {}", token.seq),
        Payload::Close => "close".into(),
        Payload::Seal(seal) => format!("seal {}", show_seal(seal)),
        Payload::Unseal { attempt } => format!("unseal {attempt}"),
        Payload::Revert { targets } => {
            let targets: Vec<String> = targets.iter().map(|target| target.pos.to_string()).collect();
            format!("revert {}", targets.join(", "))
        }
        Payload::Write(write) => {
            let token = write.token.map_or(String::new(), |token| format!(" token {}", token.seq));
            let changes: Vec<String> = write.changes.iter().map(show_change).collect();
            format!("{}{token}", changes.join(", "))
        }
    }
}

fn show_change(change: &Change) -> String {
    match change {
        Change::Put { key, body, .. } => match body {
            Body::Tombstone(_) => format!("-{}", key.escape_ascii()),
            Body::Value(value) => format!("{}={}", key.escape_ascii(), value.escape_ascii()),
            Body::Counter(value) => format!("{}={value}", key.escape_ascii()),
        },
        Change::RangeTombstone { from, .. } => format!("-{}..", from.escape_ascii()),
    }
}
