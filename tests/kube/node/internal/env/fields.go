package env

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Field is the value of a field of a pod for the downward API, such as metadata.name or metadata.labels['x'].
func Field(pod *corev1.Pod, path string) (string, error) {
	if name, key, found := subscript(path); found {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return lines(pod.Labels), nil
	case "metadata.annotations":
		return lines(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return pod.Status.HostIP, nil
	case "status.podIP", "status.podIPs":
		return pod.Status.PodIP, nil
	}
	return "", fmt.Errorf("fieldPath: there is no field %q", path)
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (name, key string, found bool) {
	name, rest, found := strings.Cut(path, "['")
	if !found || !strings.HasSuffix(rest, "']") {
		return "", "", false
	}
	return name, strings.TrimSuffix(rest, "']"), true
}

func lines(entries map[string]string) string {
	var out []string
	for key, value := range entries {
		out = append(out, fmt.Sprintf("%s=%q", key, value))
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// Resource is the value of a container's request or limit for the downward API. A limit that is not set is what the node has.
func Resource(container *corev1.Container, path string, divisor resource.Quantity, node corev1.ResourceList) (string, error) {
	kind, name, found := strings.Cut(path, ".")
	resourceName := corev1.ResourceName(name)
	var quantity resource.Quantity
	switch {
	case found && kind == "limits":
		quantity = limit(container, resourceName, node)
	case found && kind == "requests":
		quantity = container.Resources.Requests[resourceName]
	default:
		return "", fmt.Errorf("resourceFieldRef: there is no resource %q", path)
	}
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if resourceName == corev1.ResourceCPU {
		return strconv.FormatInt(ceil(quantity.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(ceil(quantity.Value(), divisor.Value()), 10), nil
}

func limit(container *corev1.Container, name corev1.ResourceName, node corev1.ResourceList) resource.Quantity {
	if quantity, found := container.Resources.Limits[name]; found {
		return quantity
	}
	return node[name]
}

func ceil(value, divisor int64) int64 {
	return int64(math.Ceil(float64(value) / float64(max(divisor, 1))))
}
