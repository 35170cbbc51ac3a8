//! Writes a few rows into a table of three tablets and reads them back in order, by prefix
//! and backwards. Wants a cluster (`ebla dev`) and its address, by default 127.0.0.1:7400,
//! as the argument or in EBLA_ENDPOINTS.

use ebla_client::{Batch, Client, Reason, Scan, WriteOptions, v1};
use futures::TryStreamExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder().endpoints(endpoints()).connect().await?;
    let request = v1::CreateTableRequest {
        name: "fruit".to_owned(),
        spec: None,
        split_keys: vec!["g".into(), "p".into()],
    };
    match client.admin().create_table(request).await {
        Ok(_) => {}
        Err(error) if error.reason() == Reason::TableExists => {}
        Err(error) => return Err(error.into()),
    }

    // The batch is cut by tablet: each part is atomic, the whole is not.
    let names = ["apple", "apricot", "fig", "grape", "lemon", "pear", "plum", "quince"];
    let batch = names.iter().fold(Batch::new(), |batch, name| batch.set(*name, name.to_uppercase()));
    for part in client.write_split("fruit", batch, WriteOptions::default()).await? {
        let rows = part.ops.len();
        println!("tablet {}: {rows} rows at {}", part.tablet_id, part.result?.committed()?.ts.0);
    }

    let mut rows = client.scan("fruit", Scan::all())?;
    while let Some(row) = rows.try_next().await? {
        println!("{}", String::from_utf8_lossy(&row.key));
    }
    let ap: Vec<_> = client.scan("fruit", Scan::prefix("ap"))?.try_collect().await?;
    println!("{} rows begin with ap", ap.len());
    let last = Scan { reverse: true, limit: Some(2), keys_only: true, ..Scan::all() };
    let last: Vec<_> = client.scan("fruit", last)?.map_ok(|row| row.key).try_collect().await?;
    println!("the last two: {last:?}");
    println!("{} rows in all", client.count("fruit", Scan::all()).await?.count);
    Ok(())
}

fn endpoints() -> Vec<String> {
    let given = std::env::args().nth(1).or_else(|| std::env::var("EBLA_ENDPOINTS").ok());
    given.as_deref().unwrap_or("127.0.0.1:7400").split(',').map(str::to_owned).collect()
}
