// Command kstatus prints the status of the objects of a List, which it reads from stdin as JSON: one word for each object.
//
// Without an argument, it computes the status with kstatus, as Flux does by default. With a Kustomization as argument, it
// evaluates the Kustomization's spec.healthCheckExprs with Flux's library, and uses kstatus for the kinds without one.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/engine"
	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/statusreaders"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// healthChecks returns the reader of the kinds for which the Kustomization in file has expressions.
func healthChecks(file string) (engine.StatusReader, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var kustomization struct {
		Spec struct {
			HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &kustomization); err != nil {
		return nil, err
	}
	reader, err := cel.NewStatusReader(kustomization.Spec.HealthCheckExprs)
	if err != nil {
		return nil, err
	}
	return reader(nil), nil
}

func run() error {
	readers := []engine.StatusReader{statusreaders.NewGenericStatusReader(nil, status.Compute)}
	if len(os.Args) > 1 {
		reader, err := healthChecks(os.Args[1])
		if err != nil {
			return err
		}
		readers = append([]engine.StatusReader{reader}, readers...)
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var list unstructured.UnstructuredList
	if err := list.UnmarshalJSON(text); err != nil {
		return err
	}
	for i := range list.Items {
		object := &list.Items[i]
		for _, reader := range readers {
			if !reader.Supports(object.GroupVersionKind().GroupKind()) {
				continue
			}
			result, err := reader.ReadStatusForObject(context.Background(), nil, object)
			if err == nil {
				err = result.Error
			}
			if err != nil {
				return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
			}
			fmt.Println(result.Status)
			break
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}
