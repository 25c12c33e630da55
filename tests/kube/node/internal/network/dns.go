package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// recordSeconds is how long an answer may be kept, as CoreDNS has it.
	recordSeconds   = 5
	upstreamTimeout = 3 * time.Second
	// questionsAtOnce bounds how many questions are passed on at a time.
	questionsAtOnce = 64
)

// DNS answers for the names of the cluster, and asks the host's servers about others.
type DNS struct {
	records   atomic.Pointer[Records]
	upstream  []string
	questions chan struct{}
	servers   []*dns.Server
}

// NewDNS knows no names yet.
func NewDNS(resolvConf string) *DNS {
	d := &DNS{questions: make(chan struct{}, questionsAtOnce)}
	d.records.Store(Names(nil, nil))
	// A host without servers has none to ask.
	if config, err := dns.ClientConfigFromFile(resolvConf); err == nil {
		for _, server := range config.Servers {
			d.upstream = append(d.upstream, net.JoinHostPort(server, config.Port))
		}
	}
	return d
}

// Set replaces the names.
func (d *DNS) Set(records *Records) { d.records.Store(records) }

// Listen opens the server's ports.
func (d *DNS) Listen(address netip.Addr) error {
	at := netip.AddrPortFrom(address, 53).String()
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("listen for names: %w", err)
	}
	connections, err := net.Listen("tcp", at)
	if err != nil {
		packets.Close()
		return fmt.Errorf("listen for names: %w", err)
	}
	d.servers = []*dns.Server{
		{PacketConn: packets, Handler: dns.HandlerFunc(d.handle)},
		{Listener: connections, Handler: dns.HandlerFunc(d.handle)},
	}
	return nil
}

// Run serves until the context ends.
func (d *DNS) Run(ctx context.Context) error {
	ended := make(chan error, len(d.servers))
	for _, server := range d.servers {
		go func() { ended <- server.ActivateAndServe() }()
	}
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	for _, server := range d.servers {
		// One that has ended already says so.
		_ = server.Shutdown()
	}
	return err
}

func (d *DNS) handle(out dns.ResponseWriter, question *dns.Msg) {
	if len(question.Question) != 1 {
		reply(out, new(dns.Msg).SetRcode(question, dns.RcodeFormatError))
		return
	}
	if answer, own := Answer(d.records.Load(), question); own {
		reply(out, answer)
		return
	}
	reply(out, d.ask(question))
}

func reply(out dns.ResponseWriter, answer *dns.Msg) {
	if out.LocalAddr().Network() == "udp" {
		answer.Truncate(dns.DefaultMsgSize)
	}
	// Who asked asks again if the answer is lost.
	_ = out.WriteMsg(answer)
}

func (d *DNS) ask(question *dns.Msg) *dns.Msg {
	failed := new(dns.Msg).SetRcode(question, dns.RcodeServerFailure)
	select {
	case d.questions <- struct{}{}:
		defer func() { <-d.questions }()
	default:
		return failed
	}
	client := &dns.Client{Timeout: upstreamTimeout}
	for _, server := range d.upstream {
		if answer, _, err := client.Exchange(question, server); err == nil {
			return answer
		}
	}
	return failed
}

// Answer is what the records say to a question; own is false if it is not about the cluster.
func Answer(records *Records, question *dns.Msg) (answer *dns.Msg, own bool) {
	asked := question.Question[0]
	name := strings.ToLower(asked.Name)
	answer = new(dns.Msg).SetReply(question)
	answer.Authoritative, answer.RecursionAvailable = true, true
	if address, err := reverseAddress(name); err == nil {
		target, found := records.reverse[address]
		if !found {
			return nil, false
		}
		answer.Answer = []dns.RR{&dns.PTR{Hdr: header(asked.Name, dns.TypePTR), Ptr: target}}
		return answer, true
	}
	if !dns.IsSubDomain(Domain, name) {
		return nil, false
	}
	addresses, found := records.addresses[name]
	services, foundServices := records.services[name]
	if !found && !foundServices {
		answer.Rcode = dns.RcodeNameError
	}
	switch asked.Qtype {
	case dns.TypeA:
		for _, address := range addresses {
			answer.Answer = append(answer.Answer, &dns.A{Hdr: header(asked.Name, dns.TypeA), A: address.AsSlice()})
		}
	case dns.TypeSRV:
		for _, service := range services {
			answer.Answer = append(answer.Answer, &dns.SRV{Hdr: header(asked.Name, dns.TypeSRV), Weight: 100, Port: service.port, Target: service.target})
		}
	}
	if len(answer.Answer) == 0 {
		answer.Ns = []dns.RR{&dns.SOA{
			Hdr: header(Domain, dns.TypeSOA), Ns: "ns.dns." + Domain, Mbox: "hostmaster." + Domain, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: recordSeconds,
		}}
	}
	return answer, true
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: recordSeconds}
}

var errNoAddress = errors.New("not the reverse name of an address")

func reverseAddress(name string) (netip.Addr, error) {
	digits, found := strings.CutSuffix(name, ".in-addr.arpa.")
	parts := strings.Split(digits, ".")
	if !found || len(parts) != 4 {
		return netip.Addr{}, errNoAddress
	}
	return netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
}
