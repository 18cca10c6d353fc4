package signature_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/musehub/posthorn/signature"
)

func ExampleSigner() {
	signer, err := signature.NewSigner("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		log.Fatal(err)
	}

	id, now, body := "evt_1", time.Unix(1614265330, 0), []byte(`{"repoId":"r1"}`)
	fmt.Println("webhook-id:", id)
	fmt.Println("webhook-timestamp:", now.Unix())
	fmt.Println("webhook-signature:", signer.Standard(id, now, body))
	fmt.Println("X-MuseHub-Signature:", signer.Body(body))
	// Output:
	// webhook-id: evt_1
	// webhook-timestamp: 1614265330
	// webhook-signature: v1,T/O4llcIaFlWEhscNvclrQhTuUlulb5Vw1sdcxrrFKE=
	// X-MuseHub-Signature: sha256=3fbbe027a8bc82dc2b860b557911cadb9f2acdc8446be8b52260ed406ef3a011
}

// While a secret is being rotated, both sides may know two.
func ExampleSigner_rotation() {
	signer, err := signature.NewSigner("the new secret", "the old secret")
	if err != nil {
		log.Fatal(err)
	}
	receiver, err := signature.NewVerifier("the old secret")
	if err != nil {
		log.Fatal(err)
	}

	now, body := time.Now(), []byte(`{"repoId":"r1"}`)
	header := http.Header{}
	header.Set(signature.HeaderID, "evt_1")
	header.Set(signature.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	header.Set(signature.HeaderSignature, signer.Standard("evt_1", now, body))

	fmt.Println(receiver.Verify(header, body))
	// Output: <nil>
}

func ExampleVerifier_Verify() {
	v, err := signature.NewVerifier("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		log.Fatal(err)
	}

	// A request that was captured in February 2021 and is sent again.
	header := http.Header{}
	header.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	header.Set("webhook-timestamp", "1614265330")
	header.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")

	err = v.Verify(header, []byte(`{"test": 2432232314}`))
	fmt.Println(errors.Is(err, signature.ErrTooOld))
	fmt.Println(err)
	// Output:
	// true
	// signature: timestamp is too old
}

// A test of a receiver can turn back the clock and use a recorded request.
func ExampleVerifier_test() {
	v, err := signature.NewVerifier("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		log.Fatal(err)
	}
	v.Now = func() time.Time { return time.Unix(1614265330, 0) }

	header := http.Header{}
	header.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	header.Set("webhook-timestamp", "1614265330")
	header.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")

	fmt.Println(v.Verify(header, []byte(`{"test": 2432232314}`)))
	// Output: <nil>
}

func ExampleVerifier_Middleware() {
	const secret = "it's a secret"
	v, err := signature.NewVerifier(secret)
	if err != nil {
		log.Fatal(err)
	}
	hook := v.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "received %s", body)
	}))
	srv := httptest.NewServer(hook)
	defer srv.Close()

	signer, err := signature.NewSigner(secret)
	if err != nil {
		log.Fatal(err)
	}
	const body = `{"repoId":"r1"}`
	for _, sig := range []string{signer.Body([]byte(body)), "sha256=made up"} {
		req, err := http.NewRequest("POST", srv.URL, strings.NewReader(body))
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("X-MuseHub-Signature", sig)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Printf("%d %s\n", resp.StatusCode, text)
	}
	// Output:
	// 200 received {"repoId":"r1"}
	// 401 signature: malformed signature header: X-MuseHub-Signature
}
