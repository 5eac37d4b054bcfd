//! Services and EndpointSlices below the prefix.

use overlay_user::store::StoreHealth;

use super::server::Server;
use super::support::{LARGE, WEB, run, serve, start, web_slice};
use super::{PREFIX, TTL};

#[test]
fn services_are_followed_and_outlive_etcd() {
    run(async {
        let mut server = Server::start().await;
        server.put("services/web", WEB).await;
        let (node, _) = start(server.location(), TTL, LARGE, 1).await;
        let served = serve(&node);
        served.until_web(Some(&[])).await;
        server
            .put("endpointslices/default.web-1", &web_slice("10.244.1.2"))
            .await;
        served.until_web(Some(&["10.244.1.2:8080"])).await;
        server.stop();
        let is_away = |health: &StoreHealth| matches!(health, StoreHealth::Unreachable { .. });
        served
            .until("the outage", |state| is_away(&state.store))
            .await;
        served.until_web(Some(&["10.244.1.2:8080"])).await;
        server.restart().await;
        server
            .put("endpointslices/default.web-1", &web_slice("10.244.1.3"))
            .await;
        served.until_web(Some(&["10.244.1.3:8080"])).await;
        served
            .until("the end of it", |state| state.store == StoreHealth::Ok)
            .await;
        let mut client = server.client().await;
        let key = format!("{PREFIX}/services/web");
        client.delete(key, None).await.expect("deleted");
        served.until_web(None).await;
    });
}
