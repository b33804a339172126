// Go inside TLS: HTTP/1.1, HTTP/2 and gRPC by Go's own crypto/tls.
//
//	serve ADDRESS CERTIFICATE KEY LOG
//	ask http1|http2|grpc ADDRESS COUNT CONNECTIONS
//	become ADDRESS COUNT
//
// The last waits in a read, and meanwhile another program begins in the same process and asks.
//
// Each call is a line of the log; "/size/N/..." is answered with N bytes.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"io/ioutil"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

type line struct {
	Port     int    `json:"port"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Received int    `json:"received"`
	Sent     int    `json:"sent"`
}

type healthy struct {
	health.UnimplementedHealthServer
}

func (healthy) Check(_ context.Context, asked *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func serve(address, certificate, key, path string) {
	file, err := os.Create(path)
	check(err)
	var lock sync.Mutex
	calls := grpc.NewServer()
	health.RegisterHealthServer(calls, healthy{})
	handle := func(w http.ResponseWriter, r *http.Request) {
		port, _ := strconv.Atoi(r.RemoteAddr[strings.LastIndex(r.RemoteAddr, ":")+1:])
		one := line{Port: port, Method: r.Method, Path: r.URL.Path}
		if strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
			body, counted := &counting{ReadCloser: r.Body}, &counter{ResponseWriter: w}
			r.Body = body
			calls.ServeHTTP(counted, r)
			one.Received, one.Sent = body.size, counted.size
		} else {
			body, err := ioutil.ReadAll(r.Body)
			check(err)
			one.Received = len(body)
			one.Sent, _ = strconv.Atoi(strings.Split(r.URL.Path, "/")[2])
			w.Write(bytes.Repeat([]byte("a"), one.Sent))
		}
		lock.Lock()
		defer lock.Unlock()
		check(json.NewEncoder(file).Encode(one))
	}
	listener, err := net.Listen("tcp", address)
	check(err)
	fmt.Println("ready")
	check((&http.Server{Handler: http.HandlerFunc(handle)}).ServeTLS(listener, certificate, key))
}

type counting struct {
	io.ReadCloser
	size int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.size += n
	return n, err
}

type counter struct {
	http.ResponseWriter
	size int
}

func (c *counter) Write(b []byte) (int, error) {
	c.size += len(b)
	return c.ResponseWriter.Write(b)
}

func (c *counter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func ask(protocol, address string, count, connections int) {
	var done sync.WaitGroup
	for i := 0; i < connections; i++ {
		done.Add(1)
		go func(i int) {
			defer done.Done()
			call := caller(protocol, address)
			for j := i; j < count; j += connections {
				call(j)
			}
		}(i)
	}
	done.Wait()
}

func caller(protocol, address string) func(int) {
	insecure := &tls.Config{InsecureSkipVerify: true}
	if protocol == "grpc" {
		connection, err := grpc.Dial(address, grpc.WithTransportCredentials(credentials.NewTLS(insecure)))
		check(err)
		client := health.NewHealthClient(connection)
		return func(number int) {
			_, err := client.Check(context.Background(), &health.HealthCheckRequest{Service: fmt.Sprint(number)})
			check(err)
		}
	}
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: insecure, ForceAttemptHTTP2: protocol == "http2",
	}}
	return func(number int) {
		url := fmt.Sprintf("https://%s/size/%d/go%d", address, number*1000, number)
		answer, err := client.Post(url, "text/plain", strings.NewReader(strings.Repeat("b", number)))
		check(err)
		_, err = io.Copy(ioutil.Discard, answer.Body)
		check(err)
		answer.Body.Close()
		if answer.StatusCode != 200 || answer.ProtoMajor != map[string]int{"http1": 1, "http2": 2}[protocol] {
			panic(answer.Status + answer.Proto)
		}
	}
}

func dial(address string) *tls.Conn {
	connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	check(err)
	return connection
}

// The first goroutine of a program is always at the same place.
func become(address, count string) {
	connection := dial(address)
	go func() {
		time.Sleep(100 * time.Millisecond)
		check(syscall.Exec("/proc/self/exe", []string{os.Args[0], "say", address, count}, os.Environ()))
	}()
	connection.Read(make([]byte, 1))
}

// Farther down the stack than the other was.
func say(address string, count, depth int) {
	if depth > 0 {
		say(address, count, depth-1)
		return
	}
	connection := dial(address)
	reader := bufio.NewReader(connection)
	for i := 0; i < count; i++ {
		fmt.Fprintf(connection, "GET /size/%d/say HTTP/1.1\r\nHost: say\r\n\r\n", i)
		answer, err := http.ReadResponse(reader, nil)
		check(err)
		_, err = io.Copy(ioutil.Discard, answer.Body)
		check(err)
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	}
	if os.Args[1] == "become" {
		become(os.Args[2], os.Args[3])
	}
	if os.Args[1] == "say" {
		count, err := strconv.Atoi(os.Args[3])
		check(err)
		say(os.Args[2], count, 16)
		return
	}
	count, err := strconv.Atoi(os.Args[4])
	check(err)
	connections, err := strconv.Atoi(os.Args[5])
	check(err)
	ask(os.Args[2], os.Args[3], count, connections)
}
