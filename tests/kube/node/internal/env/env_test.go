package env

import (
	"errors"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "NAME": "pod-0", "EMPTY": ""}
	lookup := func(name string) (string, bool) { value, found := values[name]; return value, found }
	for text, want := range map[string]string{
		"":                  "",
		"plain":             "plain",
		"$(A)":              "1",
		"x$(A)y$(NAME)":     "x1ypod-0",
		"$(EMPTY)|":         "|",
		"$(UNKNOWN)":        "$(UNKNOWN)",
		"$$(A)":             "$(A)",
		"$$$(A)":            "$1",
		"$A":                "$A",
		"cost: 5$":          "cost: 5$",
		"$(A":               "$(A",
		"$(NAME).svc.$(A) ": "pod-0.svc.1 ",
	} {
		if got := Expand(text, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", text, got, want)
		}
	}
}

var errAbsent = errors.New("absent")

type played struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string][]byte
	services   []*corev1.Service
}

func (p played) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if data, found := p.configMaps[name]; found {
		return &corev1.ConfigMap{Data: data}, nil
	}
	return nil, errAbsent
}

func (p played) Secret(_, name string) (*corev1.Secret, error) {
	if data, found := p.secrets[name]; found {
		return &corev1.Secret{Data: data}, nil
	}
	return nil, errAbsent
}

func (p played) Services(namespace string) (found []*corev1.Service, _ error) {
	for _, service := range p.services {
		if service.Namespace == namespace {
			found = append(found, service)
		}
	}
	return found, nil
}

func (p played) Allocatable() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourceCPU: resource.MustParse("4")}
}

func (p played) IsNotFound(err error) bool { return errors.Is(err, errAbsent) }

func service(namespace, name, address string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: address, Ports: []corev1.ServicePort{{Name: "grpc", Port: 7070}}},
	}
}

func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c-0", UID: "u", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "account"},
		Status:     corev1.PodStatus{PodIP: "10.0.0.2", HostIP: "10.0.0.1"},
	}
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func TestALaterVariableUsesAnEarlierOneAndNotTheOtherWayRound(t *testing.T) {
	container := &corev1.Container{Env: []corev1.EnvVar{
		{Name: "EARLY", Value: "$(POD)"},
		{Name: "POD", ValueFrom: field("metadata.name")},
		{Name: "HOST", Value: "$(POD).service"},
	}}
	got, err := Resolve(pod(), container, played{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"EARLY=$(POD)", "POD=c-0", "HOST=c-0.service"}; !slices.Equal(got.List(), want) {
		t.Errorf("got %q, want %q", got.List(), want)
	}
	if got := got.ExpandAll([]string{"--name=$(HOST)"}); got[0] != "--name=c-0.service" {
		t.Errorf("argument is %q", got[0])
	}
}

func TestEnvOverridesEnvFromAndOptionalOnesMayBeAbsent(t *testing.T) {
	yes := true
	source := played{
		configMaps: map[string]map[string]string{"m": {"A": "map", "B": "map"}},
		secrets:    map[string]map[string][]byte{"s": {"B": []byte("secret")}},
	}
	container := &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}},
			{Prefix: "P_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &yes}},
		},
		Env: []corev1.EnvVar{{Name: "A", Value: "own"}},
	}
	got, err := Resolve(pod(), container, source)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=own", "B=map", "P_B=secret"}; !slices.Equal(got.List(), want) {
		t.Errorf("got %q, want %q", got.List(), want)
	}
}

func TestAnAbsentObjectOrKeyIsNamed(t *testing.T) {
	source := played{secrets: map[string]map[string][]byte{"s": {}}}
	for name, want := range map[string]string{"s": `couldn't find key k in secret "s"`, "t": `secret "t" not found`} {
		container := &corev1.Container{Env: []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{
			SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: "k"},
		}}}}
		_, err := Resolve(pod(), container, source)
		var missing *MissingError
		if !errors.As(err, &missing) || missing.Cause != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestServiceLinksCanBeTurnedOffExceptForTheAPIServer(t *testing.T) {
	source := played{services: []*corev1.Service{
		service("default", "kubernetes", "10.96.0.1"), service("default", "other", "10.96.0.2"),
		service("n", "web-page", "10.96.0.3"), service("n", "headless", corev1.ClusterIPNone),
	}}
	linked := pod()
	got, err := Resolve(linked, &corev1.Container{}, source)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "WEB_PAGE_SERVICE_HOST=10.96.0.3", "WEB_PAGE_SERVICE_PORT_GRPC=7070"} {
		if !slices.Contains(got.List(), want) {
			t.Errorf("%q is not in %q", want, got.List())
		}
	}
	off := false
	linked.Spec.EnableServiceLinks = &off
	if got, err = Resolve(linked, &corev1.Container{}, source); err != nil {
		t.Fatal(err)
	}
	if want := []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=7070", "KUBERNETES_SERVICE_PORT_GRPC=7070"}; !slices.Equal(got.List(), want) {
		t.Errorf("got %q, want %q", got.List(), want)
	}
}

func TestFields(t *testing.T) {
	for path, want := range map[string]string{
		"metadata.name": "c-0", "metadata.namespace": "n", "metadata.uid": "u", "metadata.labels": "a=\"1\"\nb=\"2\"",
		"metadata.labels['a']": "1", "metadata.annotations['x']": "", "spec.nodeName": "node",
		"spec.serviceAccountName": "account", "status.podIP": "10.0.0.2", "status.hostIP": "10.0.0.1",
	} {
		if got, err := Field(pod(), path); err != nil || got != want {
			t.Errorf("Field(%q) = %q, %v, want %q", path, got, err, want)
		}
	}
	if _, err := Field(pod(), "spec.containers"); err == nil {
		t.Error("a field that the downward API does not have was given")
	}
}

func TestResources(t *testing.T) {
	container := &corev1.Container{Resources: corev1.ResourceRequirements{
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")},
		Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
	}}
	for _, c := range []struct{ path, divisor, want string }{
		{"limits.cpu", "0", "2"}, {"limits.cpu", "1m", "1500"}, {"requests.memory", "1Mi", "1024"}, {"limits.memory", "1Gi", "8"},
	} {
		got, err := Resource(container, c.path, resource.MustParse(c.divisor), played{}.Allocatable())
		if err != nil || got != c.want {
			t.Errorf("Resource(%s, %s) = %q, %v, want %q", c.path, c.divisor, got, err, c.want)
		}
	}
}
