//! A chat in one room: every line that is typed reaches everybody else. Run it in several terminals,
//! each with a name: `chat NAME [ENDPOINTS]`. Wants a cluster (`ebla dev`) and its address, by default
//! 127.0.0.1:7400, as the second argument or in EBLA_ENDPOINTS.

use ebla_client::{Client, RoomEvent};
use tokio::sync::mpsc;

/// Everybody is in here.
const ROOM: &str = "chat";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("usage: chat NAME [ENDPOINTS]")?;
    let client = Client::builder().endpoints(endpoints()).connect().await?;
    let mut subscriber = client.subscriber().await?;
    subscriber.join([ROOM]).await?;
    let others = client.who(ROOM).await?.subscribers - 1;
    println!("{name} is in, with {others} others: type, and end with Ctrl-D");
    let mut lines = typed();
    let prefix = format!("{name}: ");
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => drop(client.publish(ROOM, format!("{prefix}{line}")).await?),
                None => return Ok(()),
            },
            event = subscriber.next() => match event? {
                RoomEvent::Message(said) if !said.message.starts_with(prefix.as_bytes()) => {
                    println!("{}", String::from_utf8_lossy(&said.message));
                }
                RoomEvent::Message(_) => {}
                RoomEvent::Rejoined(address) => println!("(connected again, at {address})"),
            },
        }
    }
}

/// Lines of the terminal; reading one blocks, so a thread of its own does it.
fn typed() -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let typed = std::io::stdin().lines().map_while(Result::ok);
        typed.map(|line| to.blocking_send(line)).take_while(Result::is_ok).for_each(drop);
    });
    lines
}

fn endpoints() -> Vec<String> {
    let given = std::env::args().nth(2).or_else(|| std::env::var("EBLA_ENDPOINTS").ok());
    given.as_deref().unwrap_or("127.0.0.1:7400").split(',').map(str::to_owned).collect()
}
