// Google's own fake of Pub/Sub, which speaks gRPC, with its REST interface as the service's description says (google.api.http).
// Usage: pubsub PORT GRPC_PORT
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/genproto/googleapis/api/annotations"
	rpc "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const largest = 16 << 20

type route struct {
	verb   string
	path   *regexp.Regexp
	fields []string // Of the request, which the path gives.
	body   string   // The field that the body is; "*" is the request itself.
	method protoreflect.MethodDescriptor
}

var variable = regexp.MustCompile(`\{([a-z_.]+)=([^}]+)\}`)

// routes reads those of a service whose methods take and give one message.
func routes(service protoreflect.ServiceDescriptor) (found []route) {
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
		if rule == nil || method.IsStreamingClient() || method.IsStreamingServer() {
			continue
		}
		for _, each := range append([]*annotations.HttpRule{rule}, rule.AdditionalBindings...) {
			made := route{body: each.Body, method: method}
			pattern := ""
			switch kind := each.Pattern.(type) {
			case *annotations.HttpRule_Get:
				made.verb, pattern = http.MethodGet, kind.Get
			case *annotations.HttpRule_Put:
				made.verb, pattern = http.MethodPut, kind.Put
			case *annotations.HttpRule_Post:
				made.verb, pattern = http.MethodPost, kind.Post
			case *annotations.HttpRule_Delete:
				made.verb, pattern = http.MethodDelete, kind.Delete
			case *annotations.HttpRule_Patch:
				made.verb, pattern = http.MethodPatch, kind.Patch
			}
			pattern = variable.ReplaceAllStringFunc(pattern, func(text string) string {
				parts := variable.FindStringSubmatch(text)
				made.fields = append(made.fields, parts[1])
				return "(" + strings.ReplaceAll(parts[2], "*", "[^/:]+") + ")"
			})
			made.path = regexp.MustCompile("^" + pattern + "$")
			found = append(found, made)
		}
	}
	return found
}

// request makes the message of a request that matches.
func (to route) request(values []string, body []byte) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(to.method.Input().FullName())
	if err != nil {
		return nil, err
	}
	made := kind.New()
	into := made
	if to.body != "" && to.body != "*" {
		into = made.Mutable(made.Descriptor().Fields().ByName(protoreflect.Name(to.body))).Message()
	}
	if len(body) > 0 {
		if err := protojson.Unmarshal(body, into.Interface()); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	for i, path := range to.fields {
		at := made
		names := strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			at = at.Mutable(at.Descriptor().Fields().ByName(protoreflect.Name(name))).Message()
		}
		at.Set(at.Descriptor().Fields().ByName(protoreflect.Name(names[len(names)-1])), protoreflect.ValueOfString(values[i]))
	}
	return made.Interface(), nil
}

func (to route) ask(ctx context.Context, service *grpc.ClientConn, values []string, body []byte) ([]byte, error) {
	asked, err := to.request(values, body)
	if err != nil {
		return nil, err
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(to.method.Output().FullName())
	if err != nil {
		return nil, err
	}
	answer := kind.New().Interface()
	name := fmt.Sprintf("/%s/%s", to.method.Parent().FullName(), to.method.Name())
	if err := service.Invoke(ctx, name, asked, answer); err != nil {
		return nil, err
	}
	return protojson.Marshal(answer)
}

var statuses = map[codes.Code]int{
	codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.OutOfRange: 400, codes.NotFound: 404,
	codes.AlreadyExists: 409, codes.Aborted: 409, codes.Unimplemented: 501, codes.Unavailable: 503,
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	server := pstest.NewServerWithPort(number(os.Args[2]))
	service, err := grpc.NewClient(server.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largest)))
	if err != nil {
		log.Fatal(err)
	}
	var all []route
	for i := range pubsubpb.File_google_pubsub_v1_pubsub_proto.Services().Len() {
		all = append(all, routes(pubsubpb.File_google_pubsub_v1_pubsub_proto.Services().Get(i))...)
	}
	handler := func(writer http.ResponseWriter, asked *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(writer, asked.Body, largest))
		answer := []byte(nil)
		if err == nil {
			err = status.Error(codes.NotFound, "there is no such method")
		}
		for _, each := range all {
			if found := each.path.FindStringSubmatch(asked.URL.Path); found != nil && each.verb == asked.Method {
				answer, err = each.ask(asked.Context(), service, found[1:], body)
				break
			}
		}
		code := 200
		if err != nil {
			told := status.Convert(err)
			if code = statuses[told.Code()]; code == 0 {
				code = 500
			}
			answer, _ = json.Marshal(map[string]any{"error": map[string]any{
				"code": code, "message": told.Message(), "status": rpc.Code(told.Code()).String(),
			}})
		}
		writer.Header().Set("Content-Type", "application/json")
		writer.WriteHeader(code)
		_, _ = writer.Write(answer)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(handler)))
}
