//! Sets, gets, swaps and deletes a row. Wants a cluster (`ebla dev`) and its address, by
//! default 127.0.0.1:7400, as the argument or in EBLA_ENDPOINTS.

use ebla_client::{Client, Reason, v1};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder().endpoints(endpoints()).connect().await?;

    let request = v1::CreateTableRequest { name: "towns".to_owned(), ..Default::default() };
    match client.admin().create_table(request).await {
        Ok(table) => println!("created table {}", table.name),
        Err(error) if error.reason() == Reason::TableExists => println!("table towns is there"),
        Err(error) => return Err(error.into()),
    }

    let written = client.set("towns", "ebla", "3500 BC").await?.committed()?;
    println!("set at {}", written.ts.0);
    let cell = client.get("towns", "ebla").await?.ok_or("the row is gone")?;
    println!("got {:?}", cell.value);

    let swapped = client.compare_and_set("towns", "ebla", cell.ts, "about 3500 BC").await?.committed()?;
    println!("swapped at {}", swapped.ts.0);
    match client.compare_and_set("towns", "ebla", cell.ts, "too late").await {
        Err(error) if error.reason() == Reason::ConditionFailed => {
            println!("a second swap is refused: {error}")
        }
        other => return Err(format!("the second swap should have been refused: {other:?}").into()),
    }
    let before = client.get_at("towns", "ebla", written.ts).await?;
    println!("at {} it was {:?}", written.ts.0, before.map(|cell| cell.value));

    client.delete("towns", "ebla").await?.committed()?;
    println!("deleted; now {:?}", client.get("towns", "ebla").await?);
    Ok(())
}

fn endpoints() -> Vec<String> {
    let given = std::env::args().nth(1).or_else(|| std::env::var("EBLA_ENDPOINTS").ok());
    given.as_deref().unwrap_or("127.0.0.1:7400").split(',').map(str::to_owned).collect()
}
