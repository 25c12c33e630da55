package env

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Source is where values come from that are not in the pod itself. An absent object is an error for which
// apierrors.IsNotFound holds.
type Source interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
	Secret(namespace, name string) (*corev1.Secret, error)
	// Services are those of a namespace.
	Services(namespace string) ([]*corev1.Service, error)
	// Allocatable is what the node has for pods.
	Allocatable() corev1.ResourceList
	IsNotFound(err error) bool
}

// MissingError says that the container cannot start before an object or a key is there.
type MissingError struct{ Cause string }

func (e *MissingError) Error() string { return e.Cause }

// Environment is a container's environment in order, each entry NAME=value, and the lookup that command and args are
// expanded by.
type Environment struct {
	names  []string
	values map[string]string
}

func (e *Environment) set(name, value string) {
	if _, found := e.values[name]; !found {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// Lookup finds a variable.
func (e *Environment) Lookup(name string) (string, bool) {
	value, found := e.values[name]
	return value, found
}

// List has every variable as NAME=value.
func (e *Environment) List() []string {
	out := make([]string, 0, len(e.names))
	for _, name := range e.names {
		out = append(out, name+"="+e.values[name])
	}
	return out
}

// ExpandAll expands each of the texts by the environment.
func (e *Environment) ExpandAll(texts []string) []string {
	out := make([]string, 0, len(texts))
	for _, text := range texts {
		out = append(out, Expand(text, e.Lookup))
	}
	return out
}

// Resolve makes the environment of a container: links to services, then envFrom, then env, a later one over an earlier one.
func Resolve(pod *corev1.Pod, container *corev1.Container, source Source) (*Environment, error) {
	out := &Environment{values: map[string]string{}}
	if err := serviceLinks(out, pod, source); err != nil {
		return nil, err
	}
	for i := range container.EnvFrom {
		if err := fromObject(out, pod, &container.EnvFrom[i], source); err != nil {
			return nil, err
		}
	}
	for i := range container.Env {
		variable := &container.Env[i]
		if variable.ValueFrom == nil {
			// Only what stands before a variable can be used in it.
			out.set(variable.Name, Expand(variable.Value, out.Lookup))
			continue
		}
		value, found, err := fromReference(pod, container, variable.ValueFrom, source)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", variable.Name, err)
		}
		if found {
			out.set(variable.Name, value)
		}
	}
	return out, nil
}

func serviceLinks(out *Environment, pod *corev1.Pod, source Source) error {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	namespaces := []string{corev1.NamespaceDefault}
	if links && pod.Namespace != corev1.NamespaceDefault {
		namespaces = append(namespaces, pod.Namespace)
	}
	for _, namespace := range namespaces {
		services, err := source.Services(namespace)
		if err != nil {
			return fmt.Errorf("list services of %s: %w", namespace, err)
		}
		sort.Slice(services, func(i, j int) bool { return services[i].Name < services[j].Name })
		for _, service := range services {
			master := namespace == corev1.NamespaceDefault && service.Name == "kubernetes"
			if master || (links && namespace == pod.Namespace) {
				serviceLink(out, service)
			}
		}
	}
	return nil
}

func serviceLink(out *Environment, service *corev1.Service) {
	address := service.Spec.ClusterIP
	if address == "" || address == corev1.ClusterIPNone || len(service.Spec.Ports) == 0 {
		return
	}
	prefix := strings.ToUpper(strings.ReplaceAll(service.Name, "-", "_"))
	out.set(prefix+"_SERVICE_HOST", address)
	out.set(prefix+"_SERVICE_PORT", strconv.Itoa(int(service.Spec.Ports[0].Port)))
	for _, port := range service.Spec.Ports {
		if port.Name != "" {
			name := strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))
			out.set(prefix+"_SERVICE_PORT_"+name, strconv.Itoa(int(port.Port)))
		}
	}
}

func fromObject(out *Environment, pod *corev1.Pod, from *corev1.EnvFromSource, source Source) error {
	values := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		object, err := source.ConfigMap(pod.Namespace, from.ConfigMapRef.Name)
		if err != nil {
			return skip(err, from.ConfigMapRef.Optional, source, "configmap", from.ConfigMapRef.Name)
		}
		values = object.Data
	case from.SecretRef != nil:
		object, err := source.Secret(pod.Namespace, from.SecretRef.Name)
		if err != nil {
			return skip(err, from.SecretRef.Optional, source, "secret", from.SecretRef.Name)
		}
		for key, value := range object.Data {
			values[key] = string(value)
		}
	}
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		out.set(from.Prefix+key, values[key])
	}
	return nil
}

// skip turns the absence of an optional object into nothing, and that of another into what a pod's status says of it.
func skip(err error, optional *bool, source Source, kind, name string) error {
	switch {
	case !source.IsNotFound(err):
		return fmt.Errorf("read %s %q: %w", kind, name, err)
	case optional != nil && *optional:
		return nil
	default:
		return &MissingError{fmt.Sprintf("%s %q not found", kind, name)}
	}
}

func fromReference(pod *corev1.Pod, container *corev1.Container, from *corev1.EnvVarSource, source Source) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		value, err := Field(pod, from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		of := container
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			of = containerNamed(pod, name)
		}
		if of == nil {
			return "", false, fmt.Errorf("resourceFieldRef: there is no container %q", from.ResourceFieldRef.ContainerName)
		}
		value, err := Resource(of, from.ResourceFieldRef.Resource, from.ResourceFieldRef.Divisor, source.Allocatable())
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		reference := from.ConfigMapKeyRef
		object, err := source.ConfigMap(pod.Namespace, reference.Name)
		if err != nil {
			return "", false, skip(err, reference.Optional, source, "configmap", reference.Name)
		}
		value, found := object.Data[reference.Key]
		return value, found, missingKey(found, reference.Optional, "configmap", reference.Name, reference.Key)
	case from.SecretKeyRef != nil:
		reference := from.SecretKeyRef
		object, err := source.Secret(pod.Namespace, reference.Name)
		if err != nil {
			return "", false, skip(err, reference.Optional, source, "secret", reference.Name)
		}
		value, found := object.Data[reference.Key]
		return string(value), found, missingKey(found, reference.Optional, "secret", reference.Name, reference.Key)
	}
	return "", false, fmt.Errorf("valueFrom names a source that this node does not know")
}

func missingKey(found bool, optional *bool, kind, name, key string) error {
	if found || (optional != nil && *optional) {
		return nil
	}
	return &MissingError{fmt.Sprintf("couldn't find key %s in %s %q", key, kind, name)}
}

func containerNamed(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
