// Command kubecheck reads Kubernetes manifests on standard input and fails if
// one of them would not be understood: an unknown kind, an unknown or misspelt
// field, a value of the wrong type, or a selector that selects nothing. It
// stands in for the API server where no cluster is at hand.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// elsewhere are kinds of operators, whose fields are not known here.
var elsewhere = map[string]bool{"ServiceMonitor": true}

func main() {
	n, err := check(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubecheck:", err)
		os.Exit(1)
	}
	fmt.Printf("%d manifests understood\n", n)
}

func check(in io.Reader) (n int, err error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{apps.AddToScheme, core.AddToScheme, networking.AddToScheme, policy.AddToScheme} {
		if err := add(scheme); err != nil {
			return 0, err
		}
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []runtime.Object
	var errs []error
	for docs := yaml.NewYAMLReader(bufio.NewReader(in)); ; {
		doc, err := docs.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
		if empty(doc) {
			continue
		}
		n++
		object, kind, err := decoder.Decode(doc, nil, nil)
		switch {
		case kind != nil && elsewhere[kind.Kind]:
		case err != nil:
			errs = append(errs, err)
		default:
			objects = append(objects, object)
		}
	}
	return n, errors.Join(append(errs, selectors(objects)...)...)
}

// empty reports whether a document has nothing but comments.
func empty(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

// selectors holds what selects pods against the pods that there will be.
func selectors(objects []runtime.Object) (errs []error) {
	var pods []labels.Set
	for _, o := range objects {
		if s, ok := o.(*apps.StatefulSet); ok {
			pods = append(pods, s.Spec.Template.Labels)
		}
	}
	for _, o := range objects {
		var selector *meta.LabelSelector
		switch o := o.(type) {
		case *apps.StatefulSet:
			selector = o.Spec.Selector
		case *policy.PodDisruptionBudget:
			selector = o.Spec.Selector
		case *core.Service:
			selector = &meta.LabelSelector{MatchLabels: o.Spec.Selector}
		default:
			continue
		}
		s, err := meta.LabelSelectorAsSelector(selector)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		selected := false
		for _, p := range pods {
			selected = selected || !s.Empty() && s.Matches(p)
		}
		if !selected {
			errs = append(errs, fmt.Errorf("%T %s selects no pod", o, o.(meta.Object).GetName()))
		}
	}
	return errs
}
