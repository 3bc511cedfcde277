// An application and a client of the unmodified Java SDK over gRPC; prints what they saw as one line of JSON. It begins
// when a line comes in, and says "subscribed" when a change of the configuration is awaited.

import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.Empty;
import io.dapr.client.DaprClient;
import io.dapr.client.DaprClientBuilder;
import io.dapr.client.DaprHttp;
import io.dapr.client.DaprPreviewClient;
import io.dapr.client.SubscriptionListener;
import io.dapr.client.domain.CloudEvent;
import io.dapr.client.domain.HttpExtension;
import io.dapr.client.domain.PublishEventRequest;
import io.dapr.client.domain.State;
import io.dapr.client.domain.StateOptions;
import io.dapr.client.domain.TransactionalStateOperation;
import io.dapr.client.domain.TransactionalStateOperation.OperationType;
import io.dapr.client.domain.query.Query;
import io.dapr.client.domain.query.Sorting;
import io.dapr.client.domain.query.filters.InFilter;
import io.dapr.exceptions.DaprException;
import io.dapr.utils.TypeRef;
import io.dapr.v1.AppCallbackAlphaGrpc;
import io.dapr.v1.AppCallbackGrpc;
import io.dapr.v1.AppCallbackHealthCheckGrpc;
import io.dapr.v1.CommonProtos.InvokeRequest;
import io.dapr.v1.CommonProtos.InvokeResponse;
import io.dapr.v1.DaprAppCallbackProtos.BulkSubscribeConfig;
import io.dapr.v1.DaprAppCallbackProtos.HealthCheckResponse;
import io.dapr.v1.DaprAppCallbackProtos.ListTopicSubscriptionsResponse;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventBulkRequest;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventBulkRequestEntry;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventBulkResponse;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventBulkResponseEntry;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventRequest;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventResponse;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus;
import io.dapr.v1.DaprAppCallbackProtos.TopicRoutes;
import io.dapr.v1.DaprAppCallbackProtos.TopicRule;
import io.dapr.v1.DaprAppCallbackProtos.TopicSubscription;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import reactor.core.Disposable;
import reactor.core.publisher.Mono;

public class Sdk {
    static final int PATIENCE = 60;
    static final ObjectMapper JSON = new ObjectMapper();
    static final String STORE = "statestore";
    static final StateOptions FIRST =
        new StateOptions(StateOptions.Consistency.STRONG, StateOptions.Concurrency.FIRST_WRITE);
    static final BlockingQueue<Map<String, Object>> EVENTS = new LinkedBlockingQueue<>();
    static final BlockingQueue<String> PROBES = new LinkedBlockingQueue<>();
    static final AtomicInteger AGAIN = new AtomicInteger();

    static <T> void answer(StreamObserver<T> observer, T message) {
        observer.onNext(message);
        observer.onCompleted();
    }

    static Map<String, Object> event(String topic, ByteString data, String type, String path) {
        return Map.of("topic", topic, "data", data.toString(java.nio.charset.StandardCharsets.ISO_8859_1), "type", type, "path", path);
    }

    static TopicSubscription.Builder subscription(String topic) {
        return TopicSubscription.newBuilder().setPubsubName("pubsub").setTopic(topic);
    }

    static class Application extends AppCallbackGrpc.AppCallbackImplBase {
        @Override
        public void listTopicSubscriptions(Empty request, StreamObserver<ListTopicSubscriptionsResponse> observer) {
            TopicRule special = TopicRule.newBuilder().setMatch("event.type == \"special\"").setPath("special").build();
            answer(observer, ListTopicSubscriptionsResponse.newBuilder()
                .addSubscriptions(subscription("orders")
                    .setRoutes(TopicRoutes.newBuilder().addRules(special).setDefault("default")))
                .addSubscriptions(subscription("again"))
                .addSubscriptions(subscription("graves"))
                .addSubscriptions(subscription("poison").setDeadLetterTopic("graves"))
                .addSubscriptions(subscription("batches").setBulkSubscribe(BulkSubscribeConfig.newBuilder()
                    .setEnabled(true).setMaxMessagesCount(2).setMaxAwaitDurationMs(1000)))
                .build());
        }

        @Override
        public void onTopicEvent(TopicEventRequest request, StreamObserver<TopicEventResponse> observer) {
            TopicEventResponseStatus status = TopicEventResponseStatus.SUCCESS;
            if (request.getTopic().equals("poison")) {
                status = TopicEventResponseStatus.DROP;
            } else if (request.getTopic().equals("again") && AGAIN.incrementAndGet() == 1) {
                status = TopicEventResponseStatus.RETRY;
            } else {
                EVENTS.add(event(request.getTopic(), request.getData(), request.getDataContentType(), request.getPath()));
            }
            answer(observer, TopicEventResponse.newBuilder().setStatus(status).build());
        }

        @Override
        public void onInvoke(InvokeRequest request, StreamObserver<InvokeResponse> observer) {
            if (!request.getMethod().equals("echo")) {
                observer.onError(Status.FAILED_PRECONDITION.withDescription("it failed").asRuntimeException());
                return;
            }
            Map<String, String> told = new TreeMap<>(Map.of(
                "verb", request.getHttpExtension().getVerb().toString(),
                "query", request.getHttpExtension().getQuerystring(),
                "type", request.getContentType(),
                "data", request.getData().getValue().toStringUtf8()));
            answer(observer, InvokeResponse.newBuilder().setContentType("application/json")
                .setData(Any.newBuilder().setValue(json(told))).build());
        }
    }

    // The stable method for these is not answered, as by applications of older versions.
    static class Bulk extends AppCallbackAlphaGrpc.AppCallbackAlphaImplBase {
        @Override
        public void onBulkTopicEventAlpha1(TopicEventBulkRequest request, StreamObserver<TopicEventBulkResponse> observer) {
            TopicEventBulkResponse.Builder response = TopicEventBulkResponse.newBuilder();
            for (TopicEventBulkRequestEntry entry : request.getEntriesList()) {
                EVENTS.add(event(request.getTopic(), entry.getCloudEvent().getData(), entry.getCloudEvent().getDataContentType(), "bulk"));
                response.addStatuses(TopicEventBulkResponseEntry.newBuilder()
                    .setEntryId(entry.getEntryId()).setStatus(TopicEventResponseStatus.SUCCESS));
            }
            answer(observer, response.build());
        }
    }

    static class Healthy extends AppCallbackHealthCheckGrpc.AppCallbackHealthCheckImplBase {
        @Override
        public void healthCheck(Empty request, StreamObserver<HealthCheckResponse> observer) {
            PROBES.add("probed");
            answer(observer, HealthCheckResponse.getDefaultInstance());
        }
    }

    static ByteString json(Object value) {
        try {
            return ByteString.copyFrom(JSON.writeValueAsBytes(value));
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }

    static Object parsed(byte[] value) throws Exception {
        return JSON.readTree(value);
    }

    static String code(Runnable call) {
        try {
            call.run();
            return "OK";
        } catch (DaprException error) {
            return error.getErrorCode();
        } catch (StatusRuntimeException error) {
            return error.getStatus().getCode().toString();
        }
    }

    static String text(State<byte[]> state) {
        return state.getValue() == null ? "" : new String(state.getValue(), java.nio.charset.StandardCharsets.UTF_8);
    }

    static <T> T within(BlockingQueue<T> queue) throws InterruptedException {
        T value = queue.poll(PATIENCE, TimeUnit.SECONDS);
        if (value == null) {
            throw new IllegalStateException("nothing came");
        }
        return value;
    }

    static TransactionalStateOperation<?> operation(OperationType type, State<?> state) {
        return new TransactionalStateOperation<>(type, state);
    }

    static Map<String, Object> states(DaprClient client) {
        Map<String, Object> seen = new LinkedHashMap<>();
        client.saveState(STORE, "one", Map.of("a", 1)).block();
        client.saveBulkState(STORE, List.of(new State<>("two", "text", ""), new State<>("three", 3, ""))).block();
        List<String> got = new ArrayList<>();
        List<Boolean> etags = new ArrayList<>();
        for (String key : List.of("one", "two", "none")) {
            State<byte[]> state = client.getState(STORE, key, byte[].class).block();
            got.add(text(state));
            etags.add(state.getEtag() != null && !state.getEtag().isEmpty());
        }
        seen.put("got", got);
        seen.put("etags", etags);

        String stale = client.getState(STORE, "one", byte[].class).block().getEtag();
        client.saveState(STORE, "one", stale, Map.of("a", 2), FIRST).block();
        seen.put("conflicts", List.of(
            code(() -> client.saveState(STORE, "one", stale, Map.of("a", 3), FIRST).block()),
            code(() -> client.deleteState(STORE, "one", stale, FIRST).block()),
            code(() -> client.executeStateTransaction(STORE, List.of(
                operation(OperationType.UPSERT, new State<>("four", 4, "")),
                operation(OperationType.UPSERT, new State<>("one", 5, stale, FIRST)))).block())));
        Map<String, String> bulk = new TreeMap<>();
        for (State<byte[]> state : client.getBulkState(STORE, List.of("one", "two", "none"), byte[].class).block()) {
            bulk.put(state.getKey(), text(state) + (state.getError() == null ? "" : state.getError()));
        }
        seen.put("bulk", bulk);

        String etag = client.getState(STORE, "one", byte[].class).block().getEtag();
        client.deleteState(STORE, "one", etag, FIRST).block();
        client.executeStateTransaction(STORE, List.of(
            operation(OperationType.UPSERT, new State<>("five", 5, "")),
            operation(OperationType.DELETE, new State<>("two")))).block();
        client.deleteState(STORE, "three").block();
        List<String> left = new ArrayList<>();
        for (String key : List.of("one", "two", "three", "four", "five")) {
            left.add(text(client.getState(STORE, key, byte[].class).block()));
        }
        seen.put("left", left);
        return seen;
    }

    static List<String> queries(DaprClient client, DaprPreviewClient preview) {
        for (Map.Entry<String, Integer> each : Map.of("ann", 30, "bob", 40, "cid", 50).entrySet()) {
            client.saveState("people", each.getKey(), null, Map.of("name", each.getKey(), "age", each.getValue()),
                Map.of("contentType", "application/json"), null).block();
        }
        Query query = new Query().setFilter(new InFilter<>("name", "ann", "cid"))
            .setSort(List.of(new Sorting("age", Sorting.Order.DESC)));
        List<String> found = new ArrayList<>();
        preview.queryState("people", query, Map.class).block().getResults().forEach(each -> found.add(each.getKey()));
        return found;
    }

    static List<String> configuration(DaprClient client) throws Exception {
        BlockingQueue<String> changed = new LinkedBlockingQueue<>();
        BlockingQueue<String> ids = new LinkedBlockingQueue<>();
        Disposable subscription = client.subscribeConfiguration("settings", "limit").subscribe(response -> {
            ids.add(response.getSubscriptionId());
            response.getItems().values().forEach(item -> changed.add(item.getValue()));
        }, error -> changed.add(error.toString()));
        String id = within(ids);
        String got = client.getConfiguration("settings", "limit").block().getValue();
        System.out.println("subscribed");
        String value = within(changed);
        while (value.equals("10")) { // The values at the start may come as well.
            value = within(changed);
        }
        boolean ended = client.unsubscribeConfiguration(id, "settings").block().getIsUnsubscribed();
        subscription.dispose();
        return List.of(got, value, ended ? "<nil>" : "still subscribed");
    }

    static List<Object> locks(DaprPreviewClient preview) {
        List<Object> seen = new ArrayList<>();
        for (String owner : List.of("me", "you")) {
            seen.add(preview.tryLock("locks", "door", owner, 60).block());
        }
        for (String owner : List.of("you", "me", "me")) {
            seen.add(preview.unlock("locks", "door", owner).block().getCode());
        }
        return seen;
    }

    static void publish(DaprClient client, DaprPreviewClient preview, Map<String, Object> seen) throws Exception {
        BlockingQueue<Object> streamed = new LinkedBlockingQueue<>();
        AtomicInteger attempts = new AtomicInteger();
        io.dapr.client.Subscription subscription = preview.subscribeToEvents("pubsub", "streamed", new SubscriptionListener<String>() {
            @Override
            public Mono<Status> onEvent(CloudEvent<String> event) {
                streamed.add(event.getData());
                return Mono.just(attempts.incrementAndGet() == 1 ? Status.RETRY : Status.SUCCESS);
            }

            @Override
            public void onError(RuntimeException error) {
                streamed.add(error.toString());
            }
        }, TypeRef.STRING);
        BlockingQueue<Object> handled = new LinkedBlockingQueue<>();
        Disposable flux = preview.subscribeToTopic("pubsub", "handled", TypeRef.STRING).subscribe(handled::add, error -> handled.add(error.toString()));

        client.publishEvent("pubsub", "orders", Map.of("orderId", 7)).block();
        client.publishEvent(new PublishEventRequest("pubsub", "orders", "plain".getBytes()).setContentType("text/plain")).block();
        client.publishEvent("pubsub", "orders", 2, Map.of("cloudevent.type", "special")).block();
        seen.put("failedEntries", preview.publishEvents("pubsub", "batches", "application/json", List.of(Map.of("orderId", 8), Map.of("orderId", 9)))
            .block().getFailedEntries().size());
        for (String topic : List.of("poison", "again")) {
            client.publishEvent("pubsub", topic, topic).block();
        }
        // These do not say when they have begun.
        for (Map.Entry<String, BlockingQueue<Object>> each : Map.of("streamed", streamed, "handled", handled).entrySet()) {
            while (each.getValue().isEmpty()) {
                client.publishEvent("pubsub", each.getKey(), each.getKey()).block();
                Thread.sleep(100);
            }
        }
        seen.put("streamed", List.of(within(streamed), within(streamed)));
        seen.put("handled", within(handled));
        flux.dispose();
        subscription.close();
        seen.put("refused", List.of(
            code(() -> client.publishEvent("nowhere", "orders", "lost").block()),
            code(() -> preview.publishEvents("nowhere", "orders", "text/plain", List.of("lost")).block())));
    }

    static Map<String, Object> invocation(DaprClient client) throws Exception {
        HttpExtension put = new HttpExtension(DaprHttp.HttpMethods.PUT, Map.of("x", List.of("1")), Map.of());
        return Map.of(
            "echoed", parsed(client.invokeMethod("app", "echo", Map.of("a", 1), put, byte[].class).block()),
            "empty", parsed(client.invokeMethod("app", "echo", null, HttpExtension.GET, byte[].class).block()),
            "failed", List.of(code(() -> client.invokeMethod("app", "fail", null, HttpExtension.POST).block())));
    }

    static Map<String, Object> proxy(DaprClient client) {
        HealthGrpc.HealthBlockingStub own = client.newGrpcStub("app", HealthGrpc::newBlockingStub);
        String answer = own.check(HealthCheckRequest.getDefaultInstance()).getStatus().toString();
        String watched = own.watch(HealthCheckRequest.newBuilder().setService("shop").build()).next().getStatus().toString();
        String failed = code(() -> own.check(HealthCheckRequest.newBuilder().setService("nothing").build()));
        return Map.of("answer", answer, "watched", List.of(watched), "failed", failed);
    }

    public static void main(String[] arguments) {
        int status = 1;
        try {
            run();
            status = 0;
        } catch (Throwable error) {
            error.printStackTrace();
        }
        System.exit(status); // Threads of the libraries would go on.
    }

    static void run() throws Exception {
        HealthStatusManager own = new HealthStatusManager();
        own.setStatus("shop", io.grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING);
        int port = Integer.parseInt(System.getenv("APP_PORT"));
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port)).addService(new Application())
            .addService(new Bulk()).addService(new Healthy()).addService(own.getHealthService()).build().start();
        System.in.read();

        Map<String, Object> seen = new LinkedHashMap<>();
        try (DaprClient client = new DaprClientBuilder().build();
                DaprPreviewClient preview = new DaprClientBuilder().buildPreviewClient()) {
            client.waitForSidecar(PATIENCE * 1000).block();
            seen.put("state", states(client));
            seen.put("found", queries(client, preview));
            seen.put("configuration", configuration(client));
            seen.put("locks", locks(preview));
            seen.put("secret", client.getSecret("secrets", "SHOP_SECRET").block());
            seen.put("secrets", client.getBulkSecret("secrets").block().get("SHOP_SECRET"));
            io.dapr.client.domain.DaprMetadata told = client.getMetadata().block();
            seen.put("metadata", List.of(told.getId(), told.getComponents().size()));
            publish(client, preview, seen);
            List<Object> events = new ArrayList<>();
            while (events.size() < 7) {
                events.add(within(EVENTS));
            }
            seen.put("events", events);
            seen.put("invoked", invocation(client));
            seen.put("nobody", code(() -> client.invokeMethod("nobody", "echo", null, HttpExtension.POST).block()));
            seen.put("proxied", proxy(client));
            seen.put("again", AGAIN.get());
            seen.put("probed", !PROBES.isEmpty());
        }
        System.out.println(JSON.writeValueAsString(seen));
    }
}
