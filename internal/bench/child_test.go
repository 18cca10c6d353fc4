package bench

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestPayload(t *testing.T) {
	now := time.Now()
	body := payload(now)
	if got, ok := sentAt(body); !ok || got.UnixNano() != now.UnixNano() {
		t.Errorf("sent at %v, want %v", got, now)
	}
	if !json.Valid(body) || len(body) < 250 || len(body) > 350 {
		t.Errorf("%d bytes that are no JSON of about 300: %s", len(body), body)
	}
	if _, ok := sentAt([]byte("{}")); ok {
		t.Error("a body of another kind has a time")
	}
}

func TestReceiver(t *testing.T) {
	r := &receiver{labels: map[string]*histogram{}}
	post := func(path, body string) int {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
		return w.Code
	}
	body := string(payload(time.Now().Add(-time.Hour)))
	for path, want := range map[string]int{"/ok/a": 200, "/ok/b": 200, "/failing/a": 500, "/held/a": 200} {
		if got := post(path, body); got != want {
			t.Errorf("%s answers %d, want %d", path, got, want)
		}
	}
	if got := post("/ok/a", `{}`); got != http.StatusBadRequest {
		t.Errorf("another body is answered with %d", got)
	}
	if a := r.label("a").latency(); a == nil || a.Count != 3 || a.P50 < 59*time.Minute {
		t.Errorf("the latencies of a are %+v", a)
	}
	r.control(receiverRequest{Reset: "a"})
	if a, b := r.label("a").latency(), r.label("b").latency(); a != nil || b == nil {
		t.Errorf("after a reset of a: %+v, and b: %+v", a, b)
	}
	r.control(receiverRequest{Hold: true})
	answered := make(chan int)
	go func() { answered <- post("/held/a", body) }()
	for r.label("a").latency() == nil { // until it has arrived
		runtime.Gosched()
	}
	select {
	case <-answered:
		t.Fatal("a held request was answered")
	default:
	}
	r.control(receiverRequest{Release: true})
	r.control(receiverRequest{Release: true}) // does nothing
	if got := <-answered; got != http.StatusOK {
		t.Errorf("a request that was released is answered with %d", got)
	}
}

func TestBareIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range []int64{0, 1, 15, 16, 1 << 47, 1<<48 + 1} {
		id := bareID(n)
		if seen[id] || len(id) != 36 || strings.Count(id, "-") != 4 {
			t.Errorf("%d is %s", n, id)
		}
		seen[id] = true
	}
}

func TestServeParent(t *testing.T) {
	var out strings.Builder
	err := serveParent(strings.NewReader("1 2"), &out, func(n int) (int, error) {
		if n == 2 {
			return 0, os.ErrInvalid
		}
		return 10 * n, nil
	})
	if want := "{\"Value\":10,\"Error\":\"\"}\n{\"Value\":0,\"Error\":\"invalid argument\"}\n"; err != nil || out.String() != want {
		t.Errorf("%v, %s", err, &out)
	}
}

func TestMachine(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // nothing is known elsewhere, which is not an error
	}
	if FileSystem(t.TempDir()) == "" || FileSystem("/proc") != "proc" {
		t.Errorf("a temporary folder is on %q, and /proc on %q", FileSystem(t.TempDir()), FileSystem("/proc"))
	}
	parent, ok := readStat(os.Getppid())
	if !ok {
		t.Fatal("the parent isn't known")
	}
	if FamilyCPU(os.Getpid(), parent.name) < 0 {
		t.Error("the CPU time of the parent isn't known")
	}
	if got := FamilyCPU(os.Getpid(), "no such name"); got >= 0 {
		t.Errorf("a process of another name has used %v", got)
	}
	if !resetPeakMemory() || peakMemory() <= 0 || processCPU() < 0 {
		t.Error("this process isn't known")
	}
}
