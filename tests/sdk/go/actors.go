package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/dapr/go-sdk/actor"
	"github.com/dapr/go-sdk/actor/runtime"
	dapr "github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	grpcservice "github.com/dapr/go-sdk/service/grpc"
	httpservice "github.com/dapr/go-sdk/service/http"
	"google.golang.org/protobuf/types/known/anypb"
)

// happenings are what actors and jobs were told.
type happenings struct {
	lock   sync.Mutex
	times  map[string]int
	change chan struct{}
}

func newHappenings() *happenings {
	return &happenings{times: map[string]int{}, change: make(chan struct{}, 1)}
}

func (h *happenings) note(what string) int {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.times[what]++
	select {
	case h.change <- struct{}{}:
	default:
	}
	return h.times[what]
}

// until waits for all of these, each so often, and gives how often each was.
func (h *happenings) until(least map[string]int) map[string]int {
	over := time.After(patience / 2)
	for {
		h.lock.Lock()
		enough, times := true, map[string]int{}
		for what, wanted := range least {
			enough = enough && h.times[what] >= wanted
		}
		for what, seen := range h.times {
			times[what] = seen
		}
		h.lock.Unlock()
		if enough {
			return times
		}
		select {
		case <-h.change:
		case <-over:
			panic(fmt.Sprint("only ", times))
		}
	}
}

// Order is what an actor is told.
type Order struct {
	Number int    `json:"number"`
	Text   string `json:"text"`
}

// Shop is an actor.
type Shop struct {
	actor.ServerImplBaseCtx
	kind     string
	client   dapr.Client
	happened *happenings
}

func (s *Shop) Type() string { return s.kind }

func (s *Shop) Echo(_ context.Context, order *Order) (*Order, error) { return order, nil }

func (s *Shop) Fail(context.Context) (string, error) { return "", errors.New("the shop is closed") }

func (s *Shop) Add(ctx context.Context, more int) (int, error) {
	states, count := s.GetStateManager(), 0
	if there, err := states.Contains(ctx, "count"); err != nil {
		return 0, err
	} else if there {
		if err := states.Get(ctx, "count", &count); err != nil {
			return 0, err
		}
	}
	time.Sleep(time.Millisecond) // Another turn would come between.
	return count + more, states.Set(ctx, "count", count+more)
}

func (s *Shop) Keep(ctx context.Context) (string, error) {
	states := s.GetStateManager()
	return "", errors.Join(
		states.Set(ctx, "order", &Order{7, "ü"}),
		states.Add(ctx, "gone", "soon"),
		states.SetWithTTL(ctx, "brief", "soon gone", time.Second),
		states.Save(ctx),
		states.Remove(ctx, "gone"),
	)
}

func (s *Shop) OnTimer(_ context.Context, text string) error {
	s.happened.note("timer " + text)
	return nil
}

func (s *Shop) ReminderCall(name string, data []byte, _, _ string) {
	s.happened.note("reminder " + name + " " + text(data))
}

// Visit calls the actors of a path, one from the other.
func (s *Shop) Visit(ctx context.Context, path []string) ([]string, error) {
	if len(path) == 0 {
		return []string{s.ID()}, nil
	}
	stub := &shopStub{kind: s.kind, id: path[0]}
	s.client.ImplActorClientStub(stub)
	visited, err := stub.Visit(ctx, path[1:])
	return append([]string{s.ID()}, visited...), err
}

type shopStub struct {
	kind, id string
	Echo     func(context.Context, *Order) (*Order, error)
	Fail     func(context.Context) (string, error)
	Add      func(context.Context, int) (int, error)
	Keep     func(context.Context) (string, error)
	Visit    func(context.Context, []string) ([]string, error)
}

func (s *shopStub) Type() string { return s.kind }
func (s *shopStub) ID() string   { return s.id }

// hostActors hosts a type of actor over HTTP, or over a stream.
func hostActors(ctx context.Context, protocol, kind string, client dapr.Client, happened *happenings) {
	factory := func() actor.ServerContext { return &Shop{kind: kind, client: client, happened: happened} }
	address := "127.0.0.1:" + os.Getenv("APP_PORT")
	if protocol == "http" {
		service := httpservice.NewService(address)
		service.RegisterActorImplFactoryContext(factory)
		go func() { check(service.Start()) }()
		return
	}
	service := must(grpcservice.NewService(address))
	go func() { check(service.Start()) }()
	host := runtime.NewActorRuntimeContext()
	host.RegisterActorFactory(factory)
	depth := int32(4)
	options := dapr.ActorEventSubscriptionOptions{Reentrancy: &dapr.ActorReentrancyConfig{Enabled: true, MaxStackDepth: &depth}}
	for over := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // Until the gateway has seen the application.
		_, err := client.SubscribeActorEvents(ctx, host, options)
		if err == nil {
			return
		}
		if time.Now().After(over) {
			panic(err)
		}
	}
}

func actors(protocol string) {
	ctx, kind, happened := context.Background(), "Shop-"+protocol, newHappenings()
	client := must(dapr.NewClient())
	check(client.Wait(ctx, patience))
	hostActors(ctx, protocol, kind, client, happened)
	far := must(dapr.NewClientWithPort(os.Getenv("CLIENT_GRPC_PORT")))
	one := &shopStub{kind: kind, id: "one"}
	far.ImplActorClientStub(one)
	for over := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // Until the far gateway has seen the host.
		_, err := far.InvokeActor(ctx, &dapr.InvokeActorRequest{ActorType: kind, ActorID: "one", Method: "Add", Data: []byte("0")})
		if err == nil {
			break
		}
		if time.Now().After(over) {
			panic(err)
		}
	}
	seen := map[string]any{"echo": must(one.Echo(ctx, &Order{7, "ü"}))}
	_, failed := one.Fail(ctx)
	_, unknown := far.InvokeActor(ctx, &dapr.InvokeActorRequest{ActorType: kind, ActorID: "one", Method: "Unheard"})
	seen["refused"] = []string{code(errors.Unwrap(failed)), code(errors.Unwrap(unknown))}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { must(one.Add(ctx, 1)) })
	}
	all.Wait()
	seen["added"] = must(one.Add(ctx, 0))
	must(one.Keep(ctx))
	read := func(key string) []byte {
		return must(client.GetActorState(ctx, &dapr.GetActorStateRequest{ActorType: kind, ActorID: "one", KeyName: key})).Data
	}
	seen["state"] = []string{text(read("order")), text(read("gone")), text(read("count"))}
	if protocol == "grpc" { // Over HTTP the SDK passes no reentrancy on.
		seen["visited"] = must(one.Visit(ctx, []string{"two", "one"}))
		_, deep := one.Visit(ctx, slices.Repeat([]string{"two", "one"}, 4))
		seen["tooDeep"] = deep != nil
	}

	timer := func(name, due, period, ttl string) {
		check(client.RegisterActorTimer(ctx, &dapr.RegisterActorTimerRequest{
			ActorType: kind, ActorID: "one", Name: name, DueTime: due, Period: period, TTL: ttl, CallBack: "OnTimer", Data: []byte(`"` + name + `"`),
		}))
	}
	reminder := func(name, due, period, ttl string) {
		check(client.RegisterActorReminder(ctx, &dapr.RegisterActorReminderRequest{
			ActorType: kind, ActorID: "one", Name: name, DueTime: due, Period: period, TTL: ttl, Data: []byte{'<', 0xc3, 0xbc, '>'},
			FailurePolicy: &dapr.JobFailurePolicyDrop{},
		}))
	}
	timer("often", "50ms", "200ms", "")
	timer("once", "PT0S", "", "")
	timer("counted", "0s", "R2/PT1S", "")
	reminder("often", "0s", "200ms", "")
	reminder("once", "50ms", "", "")
	reminder("counted", "0s", "R2/PT1S", "")
	happened.until(map[string]int{
		"timer often": 3, "timer once": 1, "timer counted": 2, "reminder often <ü>": 3, "reminder once <ü>": 1, "reminder counted <ü>": 2,
	})
	check(client.UnregisterActorTimer(ctx, &dapr.UnregisterActorTimerRequest{ActorType: kind, ActorID: "one", Name: "often"}))
	check(client.UnregisterActorReminder(ctx, &dapr.UnregisterActorReminderRequest{ActorType: kind, ActorID: "one", Name: "often"}))
	before := happened.until(nil)
	timer("later", "0s", "200ms", "")
	reminder("later", "0s", "200ms", "")
	after := happened.until(map[string]int{"timer later": 3, "reminder later <ü>": 3})
	seen["after"] = []int{after["timer often"] - before["timer often"], after["reminder often <ü>"] - before["reminder often <ü>"]}
	seen["times"] = []int{after["timer once"], after["timer counted"], after["reminder once <ü>"], after["reminder counted <ü>"]}
	for over := time.Now().Add(patience / 2); len(read("brief")) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(over) {
			panic("it does not expire")
		}
	}
	fmt.Println(text(must(json.Marshal(seen))))
}

func jobs() {
	ctx, happened := context.Background(), newHappenings()
	service := must(grpcservice.NewService("127.0.0.1:" + os.Getenv("APP_PORT")))
	for _, name := range []string{"often", "once", "dropped", "retried"} {
		check(service.AddJobEventHandler(name, func(_ context.Context, job *common.JobEvent) error {
			times := happened.note(job.JobType + " " + text(job.Data))
			if name == "dropped" || (name == "retried" && times < 3) {
				return errors.New("not yet")
			}
			return nil
		}))
	}
	go func() { check(service.Start()) }()
	client := must(dapr.NewClient())
	check(client.Wait(ctx, patience))
	data := dapr.WithJobData(&anypb.Any{Value: bytes.Repeat([]byte("d"), 3)})
	kept := dapr.NewJob("kept", dapr.WithJobSchedule("@every 1h"), dapr.WithJobRepeats(3), dapr.WithJobTTL("9h"), data,
		dapr.WithJobConstantFailurePolicyMaxRetries(2), dapr.WithJobConstantFailurePolicyInterval(7*time.Second))
	check(client.ScheduleJob(ctx, kept))
	got := must(client.GetJob(ctx, "kept"))
	policy := got.FailurePolicy.(*dapr.JobFailurePolicyConstant)
	seen := map[string]any{
		"got":   []any{*got.Schedule, *got.Repeats, *got.TTL, text(got.Data.GetValue()), *policy.MaxRetries, policy.Interval.Seconds()},
		"again": code(client.ScheduleJob(ctx, kept)),
	}
	kept.Overwrite = true
	check(client.ScheduleJob(ctx, kept))
	check(client.DeleteJob(ctx, "kept"))
	_, missing := client.GetJob(ctx, "kept")
	seen["missing"] = code(missing)

	check(client.ScheduleJob(ctx, dapr.NewJob("often", dapr.WithJobSchedule("@every 1s"), dapr.WithJobDueTime("0s"), dapr.WithJobRepeats(2), data)))
	check(client.ScheduleJob(ctx, dapr.NewJob("once", dapr.WithJobDueTime("100ms"))))
	check(client.ScheduleJob(ctx, dapr.NewJob("dropped", dapr.WithJobDueTime("0s"), dapr.WithJobDropFailurePolicy())))
	check(client.ScheduleJob(ctx, dapr.NewJob("retried", dapr.WithJobDueTime("0s"), dapr.WithJobConstantFailurePolicyInterval(time.Millisecond))))
	seen["happened"] = happened.until(map[string]int{"often ddd": 2, "once ": 1, "dropped ": 1, "retried ": 3})
	fmt.Println(text(must(json.Marshal(seen))))
}
