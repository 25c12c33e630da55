package network

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Domain is what names in the cluster end with.
const Domain = "cluster.local."

// Records are the names of a cluster, each ending with a dot, as docs/specification.md of kubernetes/dns defines them.
type Records struct {
	addresses map[string][]netip.Addr
	services  map[string][]service
	reverse   map[netip.Addr]string
}

type service struct {
	target string
	port   uint16
}

// Names makes the records of all services.
func Names(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) *Records {
	r := &Records{map[string][]netip.Addr{}, map[string][]service{}, map[netip.Addr]string{}}
	byName := map[string]*corev1.Service{}
	for _, s := range services {
		byName[s.Namespace+"/"+s.Name] = s
		name := serviceName(s.Namespace, s.Name)
		if address, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
			r.add(name, address)
			r.reverse[address] = name
			for _, port := range s.Spec.Ports {
				r.addPort(name, port.Name, port.Protocol, service{name, uint16(port.Port)})
			}
		} else if s.Spec.ClusterIP == corev1.ClusterIPNone {
			// Known even while nothing is behind it.
			r.addresses[name] = nil
		}
	}
	for _, slice := range slices {
		of := byName[slice.Namespace+"/"+slice.Labels[discoveryv1.LabelServiceName]]
		if of != nil && of.Spec.ClusterIP == corev1.ClusterIPNone {
			r.addEndpoints(serviceName(of.Namespace, of.Name), slice)
		}
	}
	return r
}

func serviceName(namespace, name string) string {
	return strings.ToLower(name + "." + namespace + ".svc." + Domain)
}

func (r *Records) add(name string, address netip.Addr) {
	r.addresses[name] = append(r.addresses[name], address)
}

func (r *Records) addPort(name, port string, given corev1.Protocol, target service) {
	if port != "" {
		key := strings.ToLower("_" + port + "._" + string(protocol(given)) + "." + name)
		r.services[key] = append(r.services[key], target)
	}
}

func (r *Records) addEndpoints(name string, slice *discoveryv1.EndpointSlice) {
	for _, endpoint := range slice.Endpoints {
		if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
			continue
		}
		for _, text := range endpoint.Addresses {
			address, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			r.add(name, address)
			own := strings.ReplaceAll(text, ".", "-") + "." + name
			if endpoint.Hostname != nil {
				own = strings.ToLower(*endpoint.Hostname) + "." + name
			}
			r.add(own, address)
			r.reverse[address] = own
			for _, port := range slice.Ports {
				if port.Name != nil && port.Port != nil {
					given := corev1.ProtocolTCP
					if port.Protocol != nil {
						given = *port.Protocol
					}
					r.addPort(name, *port.Name, given, service{own, uint16(*port.Port)})
				}
			}
		}
	}
}
