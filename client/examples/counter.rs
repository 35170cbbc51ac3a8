//! Sixteen tasks add to one counter, each a hundred times; none is lost or counted twice.
//! Wants a cluster (`ebla dev`) and its address, by default 127.0.0.1:7400, as the argument
//! or in EBLA_ENDPOINTS.

use ebla_client::{Client, Error, Reason, Value, v1};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder().endpoints(endpoints()).connect().await?;
    let request = v1::CreateTableRequest { name: "counters".to_owned(), ..Default::default() };
    match client.admin().create_table(request).await {
        Ok(_) => {}
        Err(error) if error.reason() == Reason::TableExists => {}
        Err(error) => return Err(error.into()),
    }

    let before = count(&client).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..100 {
                client.add("counters", "visits", 1).await?.committed()?;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    println!("{before} + 1600 = {}", count(&client).await?);
    Ok(())
}

async fn count(client: &Client) -> Result<i64, Error> {
    Ok(match client.get("counters", "visits").await?.map(|cell| cell.value) {
        Some(Value::Counter(count)) => count,
        Some(Value::Bytes(_)) | None => 0,
    })
}

fn endpoints() -> Vec<String> {
    let given = std::env::args().nth(1).or_else(|| std::env::var("EBLA_ENDPOINTS").ok());
    given.as_deref().unwrap_or("127.0.0.1:7400").split(',').map(str::to_owned).collect()
}
