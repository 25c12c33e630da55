package network

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Route leads from a port of a service's address to the pods behind it.
type Route struct {
	Service   netip.AddrPort
	Protocol  corev1.Protocol
	Endpoints []netip.AddrPort
}

// Routes are those of all services that have an address, in order.
func Routes(services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) []Route {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, slice := range endpointSlices {
		key := slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]
		byService[key] = append(byService[key], slice)
	}
	var routes []Route
	for _, service := range services {
		address, err := netip.ParseAddr(service.Spec.ClusterIP)
		if err != nil || !address.Is4() {
			// Headless, without an address yet, or of another family.
			continue
		}
		for _, port := range service.Spec.Ports {
			routes = append(routes, Route{
				Service:   netip.AddrPortFrom(address, uint16(port.Port)),
				Protocol:  protocol(port.Protocol),
				Endpoints: endpoints(byService[service.Namespace+"/"+service.Name], &port),
			})
		}
	}
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Protocol, b.Protocol))
	})
	return routes
}

func protocol(given corev1.Protocol) corev1.Protocol {
	return cmp.Or(given, corev1.ProtocolTCP)
}

// endpoints are the ready ones of a port, or, while there are none, those that serve though they end.
func endpoints(of []*discoveryv1.EndpointSlice, port *corev1.ServicePort) []netip.AddrPort {
	var ready, serving []netip.AddrPort
	for _, slice := range of {
		number, found := endpointPort(slice, port)
		if !found {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			for _, text := range endpoint.Addresses {
				address, err := netip.ParseAddr(text)
				if err != nil || !address.Is4() {
					continue
				}
				switch conditions := endpoint.Conditions; {
				case conditions.Ready == nil || *conditions.Ready:
					ready = append(ready, netip.AddrPortFrom(address, number))
				case conditions.Serving != nil && *conditions.Serving:
					serving = append(serving, netip.AddrPortFrom(address, number))
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return ready
}

func endpointPort(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) (uint16, bool) {
	for _, candidate := range slice.Ports {
		sameName := (candidate.Name == nil && port.Name == "") || (candidate.Name != nil && *candidate.Name == port.Name)
		sameProtocol := candidate.Protocol == nil || *candidate.Protocol == protocol(port.Protocol)
		if sameName && sameProtocol && candidate.Port != nil {
			return uint16(*candidate.Port), true
		}
	}
	return 0, false
}

// SameRoutes says whether two lists lead to the same places.
func SameRoutes(a, b []Route) bool {
	return slices.EqualFunc(a, b, func(a, b Route) bool {
		return a.Service == b.Service && a.Protocol == b.Protocol && slices.Equal(a.Endpoints, b.Endpoints)
	})
}
