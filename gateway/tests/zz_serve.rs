#[path = "it/fixture.rs"]
mod fixture;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve() {
    let node = fixture::node(skep_gateway::Settings::default()).await;
    std::fs::write("/tmp/t-gw/url", &node.url).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(16)).await;
}
