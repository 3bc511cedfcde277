package main

import (
	"os"

	_ "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// describeComponents writes the official messages of pluggable components, with all that they are made of.
func describeComponents() {
	set, seen := &descriptorpb.FileDescriptorSet{}, map[string]bool{}
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("dapr.proto.components.v1", func(file protoreflect.FileDescriptor) bool {
		add(file)
		return true
	})
	os.Stdout.Write(must(proto.Marshal(set)))
}
