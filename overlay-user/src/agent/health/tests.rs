use super::*;

use std::time::Duration;

use crate::lease::Attributes;
use crate::liveness::Pulse;
use crate::per_family::PerFamily;
use crate::service::{Kind, ObjectName, Refusal, Subject};

/// The output of a server before any report.
fn shown() -> Shown {
    Shown {
        reports: watch::channel(Progress::default()).1,
        pins: Pins::new("/nowhere"),
        liveness: Liveness::default(),
        paths: watch::channel(Paths::default()).1,
        services: watch::channel(services::Standing::default()).1,
        refused: watch::channel(Refusals::default()).1,
    }
}

async fn text(answer: impl IntoResponse) -> String {
    let body = axum::body::to_bytes(answer.into_response().into_body(), 100_000).await;
    String::from_utf8(body.expect("a body").to_vec()).expect("text")
}

#[tokio::test]
async fn livez_names_the_task_that_is_stuck() {
    let shown = shown();
    let status = async || livez(State(shown.clone())).await.into_response().status();
    let liveness = &shown.liveness;
    liveness.expect("well", Pulse::default(), Duration::from_secs(3600));
    assert_eq!(status().await, StatusCode::OK);
    let silent = Pulse::default();
    liveness.expect("dead", silent.clone(), Duration::ZERO);
    while silent.silence().is_zero() {}
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    let answer = text(livez(State(shown.clone())).await).await;
    assert!(answer.starts_with("dead: no progress for "));
}

#[tokio::test]
async fn readyz_says_as_of_when_the_leases_are_known() {
    let own = Lease {
        subnets: PerFamily::V4("10.244.1.0/24".parse().expect("a subnet")),
        attributes: Attributes {
            public_ip: PerFamily::V4([192, 0, 2, 1].into()),
            backend_type: None,
            backend_data: None,
        },
        node: None,
        reserved: false,
        expires: None,
    };
    let moment = UNIX_EPOCH + Duration::from_millis(1_700_000_000_900);
    for (as_of, synced, line) in [
        (None, false, "leases: not read yet"),
        (None, true, "leases: known"),
        (
            Some(moment),
            true,
            "leases: as known at 2023-11-14T22:13:20Z; the store has not answered this agent yet",
        ),
    ] {
        let state = LeaseState {
            own: Some(own.clone()),
            as_of,
            synced,
            ..LeaseState::default()
        };
        let progress = Progress {
            report: Some(Report::new(&state, &own)),
            ..Progress::default()
        };
        let shown = Shown {
            reports: watch::channel(progress).1,
            ..shown()
        };
        let answer = readyz(State(shown)).await.into_response();
        assert_eq!(answer.status() == StatusCode::OK, synced);
        let text = text(answer).await;
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}

#[tokio::test]
async fn what_is_amiss_beside_the_rounds_is_told_and_a_node_is_ready_all_the_same() {
    let report = Report {
        synced: true,
        ..Report::default()
    };
    let progress = Progress {
        report: Some(report),
        ..Progress::default()
    };
    let paths = Paths {
        unchecked: Some("no socket".to_owned()),
        ..Paths::default()
    };
    let mut refused = Refusals::default();
    let name = ObjectName::new("shop", "web");
    let kind = Kind::Service;
    refused.insert(Subject { kind, name }, [Refusal::Port(0)].into());
    let shown = Shown {
        reports: watch::channel(progress).1,
        paths: watch::channel(paths).1,
        refused: watch::channel(refused).1,
        ..shown()
    };
    let answer = readyz(State(shown.clone())).await.into_response();
    assert_eq!(answer.status(), StatusCode::OK);
    let text_of = text(answer).await;
    for line in [
        "kernel paths to peers: not checked: no socket",
        "refused Services: 1 not taken as they are, for instance Service shop/web: 0 is not a \
        port; kube-proxy serves what is left out",
    ] {
        assert!(text_of.lines().any(|found| found == line), "{text_of}");
    }
    let metrics = text(render_metrics(State(shown)).await).await;
    let line = "overlay_refused_services{reason=\"not_a_port\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
}
