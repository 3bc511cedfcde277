// An application and a client of the unmodified Go SDK over gRPC, and an application over HTTP; prints what they saw as
// one line of JSON. It begins when a line comes in, and says "subscribed" when a change of the configuration is awaited.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	dapr "github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	grpcservice "github.com/dapr/go-sdk/service/grpc"
	httpservice "github.com/dapr/go-sdk/service/http"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

const patience = 60 * time.Second

type event struct {
	Topic string `json:"topic"`
	Data  any    `json:"data"`
	Type  string `json:"type"`
	Path  string `json:"path"`
}

// application records what comes to it, over gRPC or HTTP.
type application struct {
	lock   sync.Mutex
	events []event
	change chan struct{}
	again  int
	probed bool
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func code(err error) string {
	told, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	return told.Code().String()
}

func text(value []byte) string { return string(value) }

func (a *application) record(path string, e *common.TopicEvent) {
	a.lock.Lock()
	defer a.lock.Unlock()
	a.events = append(a.events, event{e.Topic, e.Data, e.DataContentType, path})
	select {
	case a.change <- struct{}{}:
	default:
	}
}

// until waits for so many events; what is missing then shows in them.
func (a *application) until(count int) []event {
	over := time.After(patience)
	for {
		a.lock.Lock()
		seen := slices.Clone(a.events)
		a.lock.Unlock()
		if len(seen) >= count {
			return seen
		}
		select {
		case <-a.change:
		case <-over:
			return seen
		}
	}
}

func (a *application) accept(path string) common.TopicEventHandler {
	return func(_ context.Context, e *common.TopicEvent) (bool, error) {
		a.record(path, e)
		return false, nil
	}
}

func (a *application) register(service common.Service) {
	for _, each := range []struct {
		subscription common.Subscription
		handler      common.TopicEventHandler
	}{
		{common.Subscription{Topic: "orders", Route: "/orders"}, a.accept("default")},
		{common.Subscription{Topic: "orders", Route: "/special", Match: `event.type == "special"`, Priority: 1}, a.accept("special")},
		{common.Subscription{Topic: "graves", Route: "/graves"}, a.accept("graves")},
		{common.Subscription{Topic: "poison", Route: "/poison", DeadLetterTopic: "graves"}, func(_ context.Context, _ *common.TopicEvent) (bool, error) {
			return false, errors.New("unwanted")
		}},
		{common.Subscription{Topic: "again", Route: "/again"}, func(_ context.Context, e *common.TopicEvent) (bool, error) {
			a.lock.Lock()
			a.again++
			first := a.again == 1
			a.lock.Unlock()
			if first {
				return true, errors.New("not now")
			}
			a.record("again", e)
			return false, nil
		}},
	} {
		each.subscription.PubsubName = "pubsub"
		check(service.AddTopicEventHandler(&each.subscription, each.handler))
	}
	check(service.AddServiceInvocationHandler("/echo", func(_ context.Context, in *common.InvocationEvent) (*common.Content, error) {
		told := must(json.Marshal(map[string]string{
			"verb": in.Verb, "query": in.QueryString, "type": in.ContentType, "data": text(in.Data),
		}))
		return &common.Content{Data: told, ContentType: "application/json"}, nil
	}))
	check(service.AddServiceInvocationHandler("/fail", func(context.Context, *common.InvocationEvent) (*common.Content, error) {
		return nil, errors.New("it failed")
	}))
}

func states(ctx context.Context, client dapr.Client, store string) map[string]any {
	seen := map[string]any{}
	read := func(key string) *dapr.StateItem { return must(client.GetState(ctx, store, key, nil)) }
	first := dapr.StateOptions{Concurrency: dapr.StateConcurrencyFirstWrite, Consistency: dapr.StateConsistencyStrong}
	firstWrite := dapr.WithConcurrency(dapr.StateConcurrencyFirstWrite)

	check(client.SaveState(ctx, store, "one", []byte(`{"a":1}`), nil))
	check(client.SaveBulkState(ctx, store, &dapr.SetStateItem{Key: "two", Value: []byte(`"text"`)}, &dapr.SetStateItem{Key: "three", Value: []byte("3")}))
	got, etags := []string{}, []bool{}
	for _, key := range []string{"one", "two", "none"} {
		item := read(key)
		got, etags = append(got, text(item.Value)), append(etags, item.Etag != "")
	}
	seen["got"], seen["etags"] = got, etags

	stale := read("one").Etag
	check(client.SaveStateWithETag(ctx, store, "one", []byte(`{"a":2}`), stale, nil, firstWrite))
	seen["conflicts"] = []string{
		code(client.SaveStateWithETag(ctx, store, "one", []byte(`{"a":3}`), stale, nil, firstWrite)),
		code(client.DeleteStateWithETag(ctx, store, "one", &dapr.ETag{Value: stale}, nil, &first)),
		code(client.ExecuteStateTransaction(ctx, store, nil, []*dapr.StateOperation{
			{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{Key: "four", Value: []byte("4")}},
			{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{Key: "one", Value: []byte("5"), Etag: &dapr.ETag{Value: stale}, Options: &first}},
		})),
	}
	bulk := map[string]string{}
	for _, item := range must(client.GetBulkState(ctx, store, []string{"one", "two", "none"}, nil, 10)) {
		bulk[item.Key] = text(item.Value) + item.Error
	}
	seen["bulk"] = bulk

	check(client.DeleteStateWithETag(ctx, store, "one", &dapr.ETag{Value: read("one").Etag}, nil, &first))
	check(client.ExecuteStateTransaction(ctx, store, nil, []*dapr.StateOperation{
		{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{Key: "five", Value: []byte("5")}},
		{Type: dapr.StateOperationTypeDelete, Item: &dapr.SetStateItem{Key: "two"}},
	}))
	check(client.DeleteBulkState(ctx, store, []string{"three", "none"}, nil))
	left := []string{}
	for _, key := range []string{"one", "two", "three", "four", "five"} {
		left = append(left, text(read(key).Value))
	}
	seen["left"] = left
	return seen
}

func queries(ctx context.Context, client dapr.Client) any {
	for key, age := range map[string]int{"ann": 30, "bob": 40, "cid": 50} {
		value := must(json.Marshal(map[string]any{"name": key, "age": age}))
		check(client.SaveState(ctx, "people", key, value, map[string]string{"contentType": "application/json"}))
	}
	query := `{"filter": {"IN": {"name": ["ann", "cid"]}}, "sort": [{"key": "age", "order": "DESC"}]}`
	found := []string{}
	for _, item := range must(client.QueryStateAlpha1(ctx, "people", query, nil)).Results {
		found = append(found, item.Key)
	}
	return found
}

func configuration(ctx context.Context, client dapr.Client) any {
	changed := make(chan string, 10)
	id := must(client.SubscribeConfigurationItems(ctx, "settings", []string{"limit"}, func(_ string, items map[string]*dapr.ConfigurationItem) {
		changed <- items["limit"].Value
	}))
	got := must(client.GetConfigurationItem(ctx, "settings", "limit"))
	fmt.Println("subscribed")
	value := ""
	for over := time.After(patience); value != "20"; {
		select {
		case value = <-changed:
		case <-over:
			value = "20 did not come"
		}
	}
	return []string{got.Value, value, fmt.Sprint(client.UnsubscribeConfigurationItems(ctx, "settings", id))}
}

func locks(ctx context.Context, client dapr.Client) any {
	seen := []any{}
	for _, owner := range []string{"me", "you"} {
		seen = append(seen, must(client.TryLockAlpha1(ctx, "locks", &dapr.LockRequest{ResourceID: "door", LockOwner: owner, ExpiryInSeconds: 60})).Success)
	}
	for _, owner := range []string{"you", "me", "me"} {
		seen = append(seen, must(client.UnlockAlpha1(ctx, "locks", &dapr.UnlockRequest{ResourceID: "door", LockOwner: owner})).StatusCode)
	}
	return seen
}

// publish gives what streams of the client were sent; what the applications were sent is theirs to tell.
func publish(ctx context.Context, client dapr.Client, seen map[string]any) {
	subscription := must(client.Subscribe(ctx, dapr.SubscriptionOptions{PubsubName: "pubsub", Topic: "streamed"}))
	handled := make(chan any, 10)
	stop := must(client.SubscribeWithHandler(ctx, dapr.SubscriptionOptions{PubsubName: "pubsub", Topic: "handled"}, func(e *common.TopicEvent) common.SubscriptionResponseStatus {
		handled <- e.Data
		return common.SubscriptionResponseStatusSuccess
	}))

	check(client.PublishEvent(ctx, "pubsub", "orders", map[string]int{"orderId": 7}))
	check(client.PublishEvent(ctx, "pubsub", "orders", "plain", dapr.PublishEventWithContentType("text/plain")))
	check(client.PublishEvent(ctx, "pubsub", "orders", "2", dapr.PublishEventWithContentType("application/json"), dapr.PublishEventWithMetadata(map[string]string{"cloudevent.type": "special"})))
	bulk := client.PublishEvents(ctx, "pubsub", "orders", []any{map[string]int{"orderId": 8}, "bulk", []byte{0, 255}})
	check(bulk.Error)
	for _, topic := range []string{"poison", "again", "handled", "streamed"} {
		check(client.PublishEvent(ctx, "pubsub", topic, []byte(`"`+topic+`"`), dapr.PublishEventWithContentType("application/json")))
	}
	seen["refused"] = []string{
		code(client.PublishEvent(ctx, "nowhere", "orders", "lost")),
		code(client.PublishEvents(ctx, "nowhere", "orders", []any{"lost"}).Error),
		code(must2(client.Subscribe(ctx, dapr.SubscriptionOptions{PubsubName: "nowhere", Topic: "streamed"}))),
	}

	streamed := []any{}
	for attempt := range 2 {
		message := must(subscription.Receive())
		streamed = append(streamed, message.Data)
		if attempt == 0 {
			check(message.Retry())
		} else {
			check(message.Success())
		}
	}
	seen["streamed"], seen["handled"] = streamed, <-handled
	check(subscription.Close())
	check(stop())
}

func must2[T any](_ T, err error) error { return err }

func invocation(ctx context.Context, client dapr.Client, app string) map[string]any {
	content := &dapr.DataContent{Data: []byte(`{"a":1}`), ContentType: "application/json"}
	return map[string]any{
		"echoed": json.RawMessage(must(client.InvokeMethodWithContent(ctx, app, "echo?x=1", "put", content))),
		"empty":  json.RawMessage(must(client.InvokeMethod(ctx, app, "echo", "get"))),
		"failed": []string{
			code(must2(client.InvokeMethod(ctx, app, "fail", "post"))),
			code(must2(client.InvokeMethod(ctx, app, "nothing", "post"))),
		},
	}
}

// proxy calls a service of the application's own, which the gateways do not know. The connection is not the client's,
// which leaves out all other metadata when it has a token.
func proxy(ctx context.Context, app string) any {
	told := metadata.AppendToOutgoingContext(ctx, "dapr-app-id", app, "dapr-api-token", os.Getenv("DAPR_API_TOKEN"))
	ctx, cancel := context.WithTimeout(told, patience)
	defer cancel()
	address := "127.0.0.1:" + os.Getenv("DAPR_GRPC_PORT")
	own := healthpb.NewHealthClient(must(grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))))
	answer := must(own.Check(ctx, &healthpb.HealthCheckRequest{}))
	stream := must(own.Watch(ctx, &healthpb.HealthCheckRequest{Service: "shop"}))
	watched := []string{must(stream.Recv()).GetStatus().String()}
	return map[string]any{
		"answer":  answer.GetStatus().String(),
		"watched": watched,
		"failed":  code(must2(own.Check(ctx, &healthpb.HealthCheckRequest{Service: "nothing"}))),
	}
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "components":
			describeComponents()
		case "actors":
			actors(os.Args[2])
		case "workflows":
			workflows()
		case "jobs":
			jobs()
		}
		return
	}
	overGRPC, overHTTP := &application{change: make(chan struct{}, 1)}, &application{change: make(chan struct{}, 1)}
	listener := must(net.Listen("tcp", "127.0.0.1:"+os.Getenv("APP_PORT")))
	server := grpc.NewServer()
	own := health.NewServer()
	own.SetServingStatus("shop", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, own)
	service := grpcservice.NewServiceWithGrpcServer(listener, server)
	reflection.Register(server)
	overGRPC.register(service)
	check(service.AddHealthCheckHandler("", func(context.Context) error {
		overGRPC.lock.Lock()
		defer overGRPC.lock.Unlock()
		overGRPC.probed = true
		return nil
	}))
	go func() { check(service.Start()) }()
	web := httpservice.NewService("127.0.0.1:" + os.Getenv("WEB_PORT"))
	overHTTP.register(web)
	go func() { check(web.Start()) }()

	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()

	ctx := context.Background()
	client := must(dapr.NewClient())
	check(client.Wait(ctx, patience))
	seen := map[string]any{"state": states(ctx, client, "statestore"), "found": queries(ctx, client)}
	seen["configuration"] = configuration(ctx, client)
	seen["locks"] = locks(ctx, client)
	seen["secret"] = must(client.GetSecret(ctx, "secrets", "SHOP_SECRET", nil))
	seen["secrets"] = must(client.GetBulkSecret(ctx, "secrets", nil))["SHOP_SECRET"]
	check(client.SetMetadata(ctx, "tag", "sdk"))
	told := must(client.GetMetadata(ctx))
	seen["metadata"] = []any{told.ID, told.ExtendedMetadata["tag"], len(told.RegisteredComponents)}
	publish(ctx, client, seen)
	seen["events"], seen["httpEvents"] = overGRPC.until(9), overHTTP.until(9)
	seen["invoked"], seen["httpInvoked"] = invocation(ctx, client, "app"), invocation(ctx, client, "web")
	seen["nobody"] = code(must2(client.InvokeMethod(ctx, "nobody", "echo", "post")))
	seen["proxied"] = proxy(ctx, "app")
	overGRPC.lock.Lock()
	seen["again"], seen["probed"] = overGRPC.again, overGRPC.probed
	overGRPC.lock.Unlock()
	fmt.Println(text(must(json.Marshal(seen))))
	lines.Scan() // The application goes on until others have used it.
}
