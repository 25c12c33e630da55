package network

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func played(clusterIP string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIP, Ports: []corev1.ServicePort{{Name: "grpc", Port: 80}}},
	}
}

func slice(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr.To("grpc"), Port: ptr.To(int32(7070))}},
		Endpoints:  endpoints,
	}
}

func endpoint(address string, ready, serving bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving},
	}
}

func TestRoutesLeadToReadyEndpointsAndToEndingOnesOnlyWithoutThem(t *testing.T) {
	for _, c := range []struct {
		endpoints []discoveryv1.Endpoint
		want      []netip.AddrPort
	}{
		{nil, nil},
		{[]discoveryv1.Endpoint{endpoint("10.0.0.3", true, true), endpoint("10.0.0.2", true, true)},
			[]netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:7070"), netip.MustParseAddrPort("10.0.0.3:7070")}},
		{[]discoveryv1.Endpoint{endpoint("10.0.0.3", false, true), endpoint("10.0.0.2", true, true)},
			[]netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:7070")}},
		{[]discoveryv1.Endpoint{endpoint("10.0.0.3", false, true), endpoint("10.0.0.2", false, false)},
			[]netip.AddrPort{netip.MustParseAddrPort("10.0.0.3:7070")}},
	} {
		got := Routes([]*corev1.Service{played("10.96.0.9")}, []*discoveryv1.EndpointSlice{slice(c.endpoints...)})
		want := []Route{{netip.MustParseAddrPort("10.96.0.9:80"), corev1.ProtocolTCP, c.want}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if got := Routes([]*corev1.Service{played(corev1.ClusterIPNone)}, nil); len(got) != 0 {
		t.Errorf("a headless service has the routes %v", got)
	}
}

func ask(t *testing.T, records *Records, name string, kind uint16) (code int, answers []string) {
	t.Helper()
	answer, own := Answer(records, new(dns.Msg).SetQuestion(name, kind))
	if !own {
		return -1, nil
	}
	for _, record := range answer.Answer {
		switch r := record.(type) {
		case *dns.A:
			answers = append(answers, r.A.String())
		case *dns.SRV:
			answers = append(answers, r.Target)
		case *dns.PTR:
			answers = append(answers, r.Ptr)
		}
	}
	return answer.Rcode, answers
}

func TestNamesOfAHeadlessServiceAndItsPods(t *testing.T) {
	named := endpoint("10.0.0.2", true, true)
	named.Hostname = ptr.To("c-0")
	records := Names([]*corev1.Service{played(corev1.ClusterIPNone)}, []*discoveryv1.EndpointSlice{slice(named, endpoint("10.0.0.3", false, true))})
	for _, c := range []struct {
		name string
		kind uint16
		code int
		want []string
	}{
		{"s.n.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.0.2"}},
		{"C-0.s.n.SVC.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.0.2"}},
		{"c-0.s.n.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"c-1.s.n.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"_grpc._tcp.s.n.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, []string{"c-0.s.n.svc.cluster.local."}},
		{"2.0.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, []string{"c-0.s.n.svc.cluster.local."}},
		{"example.com.", dns.TypeA, -1, nil},
	} {
		if code, got := ask(t, records, c.name, c.kind); code != c.code || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %d %v, want %d %v", c.name, code, got, c.code, c.want)
		}
	}
}

func TestAServiceWithAnAddressIsItsName(t *testing.T) {
	records := Names([]*corev1.Service{played("10.96.0.9")}, []*discoveryv1.EndpointSlice{slice(endpoint("10.0.0.2", true, true))})
	if code, got := ask(t, records, "s.n.svc.cluster.local.", dns.TypeA); code != dns.RcodeSuccess || !reflect.DeepEqual(got, []string{"10.96.0.9"}) {
		t.Errorf("got %d %v", code, got)
	}
}

func TestAddressesAreNotGivenTwiceNorSoonAgain(t *testing.T) {
	b := &Bridge{network: netip.MustParsePrefix("10.244.0.0/16"), block: 3, used: map[byte]bool{}, last: 1}
	first, err := b.Take()
	if err != nil || first.String() != "10.244.3.2" {
		t.Fatal(first, err)
	}
	b.Free(first)
	if second, err := b.Take(); err != nil || second == first {
		t.Fatal(second, err)
	}
	for range 252 {
		if _, err := b.Take(); err != nil {
			t.Fatal(err)
		}
	}
	if address, err := b.Take(); err == nil {
		t.Errorf("%s was given out of a full network", address)
	}
}
