//! Services and EndpointSlices of the API server.
//!
//! As kube-proxy does, the server is asked for those only that kube-proxy would serve; headless
//! Services that a selector does not name are left out when they are read.

use tokio::sync::mpsc::Sender;

use super::client::Api;
use super::objects::{self, Listener, Object, ObjectEvent, Resource, Unheard};
use crate::service::api::{EndpointSlice, Service};
use crate::service::{Kind, ObjectName};
use crate::store::news::{Body, News, Update};

/// See [`LEFT_TO_OTHERS`](crate::service::api::LEFT_TO_OTHERS).
const LABELS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

const SERVICES: Resource = Resource {
    name: "services",
    paths: &["/api/v1/services"],
    labels: Some(LABELS),
};

/// v1 since Kubernetes 1.21; v1beta1 until 1.24.
const SLICES: Resource = Resource {
    name: "endpointslices",
    paths: &[
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/discovery.k8s.io/v1beta1/endpointslices",
    ],
    labels: Some(LABELS),
};

/// Tells of everything, then of every change, until the receiver is dropped.
pub(super) async fn follow(api: &Api, news: &Sender<News>) {
    let services = Forward {
        news,
        kind: Kind::Service,
        body: |service: Service| Body::Service(Ok(Box::new(service))),
    };
    let slices = Forward {
        news,
        kind: Kind::Slice,
        body: |slice: EndpointSlice| Body::Slice(Ok(Box::new(slice))),
    };
    tokio::join!(
        objects::watch(api, &SERVICES, services),
        objects::watch(api, &SLICES, slices),
    );
}

/// An object with a name in a namespace.
trait Named: Object {
    fn name(&self) -> ObjectName;
}

/// Passes on what is heard of one kind.
struct Forward<'a, T> {
    news: &'a Sender<News>,
    kind: Kind,
    body: fn(T) -> Body,
}

impl<T: Named> Listener for Forward<'_, T> {
    type Object = T;

    async fn hear(&mut self, event: ObjectEvent<T>) -> Result<(), Unheard> {
        let update = match event {
            ObjectEvent::Begin => Update::Begin,
            ObjectEvent::Listed(object) | ObjectEvent::Changed(object) => {
                Update::Put(object.name(), (self.body)(object))
            }
            ObjectEvent::Gone(object) => Update::Gone(object.name()),
            ObjectEvent::Complete(_) => Update::Complete,
            ObjectEvent::Alive => Update::Alive,
            ObjectEvent::Unreachable(why) => Update::Unreachable(why),
        };
        let kind = self.kind;
        let news = News { kind, update };
        self.news.send(news).await.map_err(|_| Unheard)
    }
}

impl Object for Service {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Named for Service {
    fn name(&self) -> ObjectName {
        ObjectName::new(&self.metadata.namespace, &self.metadata.name)
    }
}

impl Object for EndpointSlice {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Named for EndpointSlice {
    fn name(&self) -> ObjectName {
        ObjectName::new(&self.metadata.namespace, &self.metadata.name)
    }
}
