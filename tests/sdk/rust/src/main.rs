// An application and a client of the unmodified Rust SDK over gRPC; prints what they saw as one line of JSON. It begins
// when a line comes in, and says "subscribed" when a change of the configuration is awaited.

use dapr::appcallback::{
    AppCallbackService, BindingEventRequest, BindingEventResponse, Handler, HandlerMethod, InvokeRequest,
    InvokeResponse, JobEventRequest, JobEventResponse, ListInputBindingsResponse, ListTopicSubscriptionsResponse,
    TopicEventBulkRequest, TopicEventBulkResponse, TopicEventRequest, TopicEventResponse,
};
use dapr::client::{AppApiTokenLayer, TonicClientWithAuth};
use dapr::dapr::proto::common::v1::state_options::{StateConcurrency, StateConsistency};
use dapr::dapr::proto::common::v1::{Etag, StateItem, StateOptions};
use dapr::dapr::proto::runtime::v1::app_callback_server::{AppCallback, AppCallbackServer};
use dapr::error::Error;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::metadata::MetadataValue;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

type Client = dapr::Client<TonicClientWithAuth>;
type Failure = Box<dyn std::error::Error>;

const PATIENCE: Duration = Duration::from_secs(60);
const STORE: &str = "statestore";

// The SDK has no other way to the code of an error.
fn code<T>(result: Result<T, Error>) -> String {
    let told = result.err().map_or("OK".into(), |error| format!("{error:?}"));
    let name: String = told
        .split("code: ")
        .nth(1)
        .unwrap_or_default()
        .chars()
        .take_while(|each| each.is_alphanumeric())
        .collect();
    if name.is_empty() { told } else { name }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

struct Recorder {
    events: UnboundedSender<Value>,
    refused: AtomicU32,
}

#[tonic::async_trait]
impl HandlerMethod for Recorder {
    async fn handler(&self, event: TopicEventRequest) -> Result<Response<TopicEventResponse>, Status> {
        if event.topic == "again" && self.refused.fetch_add(1, Ordering::SeqCst) == 0 {
            return Ok(Response::new(TopicEventResponse { status: 1 }));
        }
        let told = json!({
            "topic": event.topic, "data": text(&event.data), "type": event.data_content_type, "path": event.path,
        });
        self.events.send(told).expect("the program listens");
        Ok(Response::new(TopicEventResponse { status: 0 }))
    }
}

// The service of the SDK, whose other methods are to be written by applications.
struct Application {
    topics: AppCallbackService,
}

#[tonic::async_trait]
impl AppCallback for Application {
    async fn on_invoke(&self, request: Request<InvokeRequest>) -> Result<Response<InvokeResponse>, Status> {
        let request = request.into_inner();
        if request.method != "echo" {
            return Err(Status::failed_precondition("it failed"));
        }
        let extension = request.http_extension.unwrap_or_default();
        let told = json!({
            "verb": extension.verb().as_str_name(), "query": extension.querystring, "type": request.content_type,
            "data": text(&request.data.unwrap_or_default().value),
        });
        let data = prost_types::Any {
            value: told.to_string().into_bytes(),
            ..Default::default()
        };
        Ok(Response::new(InvokeResponse {
            data: Some(data),
            content_type: "application/json".into(),
        }))
    }

    async fn list_topic_subscriptions(
        &self,
        request: Request<()>,
    ) -> Result<Response<ListTopicSubscriptionsResponse>, Status> {
        self.topics.list_topic_subscriptions(request).await
    }

    async fn on_topic_event(
        &self,
        request: Request<TopicEventRequest>,
    ) -> Result<Response<TopicEventResponse>, Status> {
        self.topics.on_topic_event(request).await
    }

    async fn list_input_bindings(&self, _: Request<()>) -> Result<Response<ListInputBindingsResponse>, Status> {
        Ok(Response::new(ListInputBindingsResponse::default()))
    }

    async fn on_binding_event(
        &self,
        _: Request<BindingEventRequest>,
    ) -> Result<Response<BindingEventResponse>, Status> {
        Err(Status::unimplemented("no bindings"))
    }

    async fn on_bulk_topic_event(
        &self,
        _: Request<TopicEventBulkRequest>,
    ) -> Result<Response<TopicEventBulkResponse>, Status> {
        Err(Status::unimplemented("no bulk"))
    }

    async fn on_job_event(&self, _: Request<JobEventRequest>) -> Result<Response<JobEventResponse>, Status> {
        Err(Status::unimplemented("no jobs"))
    }
}

async fn serve(events: UnboundedSender<Value>) {
    let mut topics = AppCallbackService::new();
    for topic in ["orders", "again"] {
        let handler = Box::new(Recorder {
            events: events.clone(),
            refused: AtomicU32::new(0),
        });
        topics.add_handler(Handler {
            pub_sub_name: "pubsub".into(),
            topic: topic.into(),
            handler,
        });
    }
    let (reporter, own) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", ServingStatus::Serving).await;
    let address = format!("127.0.0.1:{}", std::env::var("APP_PORT").unwrap())
        .parse()
        .unwrap();
    Server::builder()
        .layer(AppApiTokenLayer::from_env())
        .add_service(AppCallbackServer::new(Application { topics }))
        .add_service(own)
        .serve(address)
        .await
        .unwrap();
}

async fn states(client: &mut Client) -> Result<Value, Error> {
    let first = StateOptions {
        concurrency: StateConcurrency::ConcurrencyFirstWrite.into(),
        consistency: StateConsistency::ConsistencyStrong.into(),
    };
    client
        .save_state(STORE, "one", br#"{"a":1}"#.to_vec(), None, None, None)
        .await?;
    let item = |key: &str, value: &str| StateItem {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    client
        .save_bulk_states(STORE, vec![item("two", "\"text\""), item("three", "3")])
        .await?;
    let (mut got, mut etags) = (vec![], vec![]);
    for key in ["one", "two", "none"] {
        let state = client.get_state(STORE, key, None).await?;
        got.push(text(&state.data));
        etags.push(!state.etag.is_empty());
    }
    let stale = Some(Etag {
        value: client.get_state(STORE, "one", None).await?.etag,
    });
    client
        .save_state(STORE, "one", br#"{"a":2}"#.to_vec(), stale.clone(), None, Some(first))
        .await?;
    let conflict = client
        .save_state(STORE, "one", br#"{"a":3}"#.to_vec(), stale, None, Some(first))
        .await;
    let kept = text(&client.get_state(STORE, "one", None).await?.data);
    client.delete_state(STORE, "one", None).await?;
    client
        .delete_bulk_state(STORE, [("two", vec![]), ("none", vec![])])
        .await?;
    let mut left = vec![];
    for key in ["one", "two", "three"] {
        left.push(text(&client.get_state(STORE, key, None).await?.data));
    }
    Ok(json!({"got": got, "etags": etags, "conflicts": [code(conflict)], "kept": kept, "left": left}))
}

async fn queries(client: &mut Client) -> Result<Vec<String>, Error> {
    for (key, age) in [("ann", 30), ("bob", 40), ("cid", 50)] {
        let metadata = HashMap::from([("contentType".into(), "application/json".into())]);
        let value = json!({"name": key, "age": age}).to_string().into_bytes();
        client
            .save_state("people", key, value, None, Some(metadata), None)
            .await?;
    }
    let query = json!({"filter": {"IN": {"name": ["ann", "cid"]}}, "sort": [{"key": "age", "order": "DESC"}]});
    let found = client.query_state_alpha1("people", query, None).await?;
    Ok(found.results.into_iter().map(|item| item.key).collect())
}

async fn configuration(client: &mut Client) -> Result<Value, Failure> {
    let mut changes = client.subscribe_configuration("settings", vec!["limit"], None).await?;
    let id = changes.message().await?.ok_or("no first message")?.id;
    let got = client.get_configuration("settings", vec!["limit"], None).await?.items["limit"]
        .value
        .clone();
    println!("subscribed");
    let mut value = String::new();
    while value != "20" {
        let change = tokio::time::timeout(PATIENCE, changes.message())
            .await??
            .ok_or("the stream ended")?;
        value = change
            .items
            .get("limit")
            .map(|item| item.value.clone())
            .unwrap_or_default();
    }
    let ended = client.unsubscribe_configuration("settings", id.as_str()).await?.ok;
    Ok(json!([got, value, if ended { "<nil>" } else { "still subscribed" }]))
}

async fn publish(
    client: &mut Client,
    events: &mut UnboundedReceiver<Value>,
    seen: &mut BTreeMap<&str, Value>,
) -> Result<(), Failure> {
    let special = HashMap::from([("cloudevent.type".into(), "special".into())]);
    client
        .publish_event(
            "pubsub",
            "orders",
            "application/json",
            br#"{"orderId":7}"#.to_vec(),
            None,
        )
        .await?;
    client
        .publish_event("pubsub", "orders", "text/plain", b"plain".to_vec(), None)
        .await?;
    client
        .publish_event("pubsub", "orders", "application/json", b"2".to_vec(), Some(special))
        .await?;
    client
        .publish_event("pubsub", "again", "application/json", b"\"again\"".to_vec(), None)
        .await?;
    let refused = client
        .publish_event("nowhere", "orders", "text/plain", b"lost".to_vec(), None)
        .await;
    seen.insert("refused", json!([code(refused)]));
    let mut came = vec![];
    while came.len() < 4 {
        came.push(
            tokio::time::timeout(PATIENCE, events.recv())
                .await?
                .ok_or("no events")?,
        );
    }
    seen.insert("events", came.into());
    Ok(())
}

async fn invocation(client: &mut Client) -> Result<Value, Failure> {
    let data = prost_types::Any {
        value: br#"{"a":1}"#.to_vec(),
        ..Default::default()
    };
    let echoed = client.invoke_service("app", "echo", Some(data)).await?;
    let failed = client.invoke_service("app", "fail", None).await;
    let nobody = client.invoke_service("nobody", "echo", None).await;
    let value: Value = serde_json::from_slice(&echoed.data.unwrap_or_default().value)?;
    Ok(json!({"echoed": value, "type": echoed.content_type, "failed": [code(failed), code(nobody)]}))
}

async fn proxy() -> Result<Value, Failure> {
    let address = format!("http://127.0.0.1:{}", std::env::var("DAPR_GRPC_PORT")?);
    let (app, token) = (
        MetadataValue::from_static("app"),
        MetadataValue::try_from(std::env::var("DAPR_API_TOKEN")?)?,
    );
    let channel = Endpoint::from_shared(address)?.timeout(PATIENCE).connect().await?;
    let mut own = HealthClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert("dapr-app-id", app.clone());
        request.metadata_mut().insert("dapr-api-token", token.clone());
        Ok(request)
    });
    let of = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let answer = own.check(of("")).await?.into_inner().status().as_str_name();
    let mut stream = own.watch(of("shop")).await?.into_inner();
    let watched = stream
        .message()
        .await?
        .ok_or("the stream ended")?
        .status()
        .as_str_name();
    let failed = own.check(of("nothing")).await.expect_err("it is not there").code();
    Ok(json!({"answer": answer, "watched": [watched], "failed": format!("{failed:?}")}))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let (sender, mut events) = unbounded_channel();
    tokio::spawn(serve(sender));
    BufReader::new(tokio::io::stdin()).read_line(&mut String::new()).await?;

    let mut client = dapr::Client::new().await?;
    let mut seen = BTreeMap::new();
    seen.insert("state", states(&mut client).await?);
    seen.insert("found", queries(&mut client).await?.into());
    seen.insert("configuration", configuration(&mut client).await?);
    seen.insert("secret", json!(client.get_secret("secrets", "SHOP_SECRET").await?.data));
    seen.insert(
        "secrets",
        json!(client.get_bulk_secret("secrets", None).await?.data["SHOP_SECRET"].secrets),
    );
    client.set_metadata("tag", "sdk").await?;
    let told = client.get_metadata().await?;
    seen.insert(
        "metadata",
        json!([told.id, told.extended_metadata["tag"], told.registered_components.len()]),
    );
    publish(&mut client, &mut events, &mut seen).await?;
    seen.insert("invoked", invocation(&mut client).await?);
    seen.insert("proxied", proxy().await?);
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}
