package main

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeObject is the node as the API has it.
func nodeObject(o *options, address netip.Addr, version string) (*corev1.Node, error) {
	capacity := corev1.ResourceList{}
	amounts := maps.Clone(o.capacity)
	if o.gpus > 0 {
		amounts["nvidia.com/gpu"] = strconv.Itoa(o.gpus)
	}
	for name, amount := range amounts {
		quantity, err := resource.ParseQuantity(amount)
		if err != nil {
			return nil, fmt.Errorf("--capacity %s: %q: %w", name, amount, err)
		}
		capacity[corev1.ResourceName(name)] = quantity
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return nil, err
	}
	labels := map[string]string{
		corev1.LabelHostname: o.name, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
	}
	maps.Copy(labels, o.labels)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: o.name, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity, Conditions: conditions(time.Now()),
			// By address first: a name of a node leads nowhere.
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: address.String()}, {Type: corev1.NodeHostName, Address: address.String()},
			},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, KubeletVersion: version,
				ContainerRuntimeVersion: "process://1", OSImage: "processes of a host", KernelVersion: unix.ByteSliceToString(host.Release[:]),
			},
		},
	}, nil
}

func conditions(at time.Time) []corev1.NodeCondition {
	var out []corev1.NodeCondition
	for kind, status := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeMemoryPressure: corev1.ConditionFalse,
		corev1.NodeDiskPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
		corev1.NodeNetworkUnavailable: corev1.ConditionFalse,
	} {
		reason := "KubeNodeRuns"
		out = append(out, corev1.NodeCondition{
			Type: kind, Status: status, Reason: reason, LastHeartbeatTime: metav1.NewTime(at), LastTransitionTime: metav1.NewTime(at),
		})
	}
	return out
}
