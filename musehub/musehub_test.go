package musehub_test

import (
	"encoding/json"
	"fmt"
	"log"
	"reflect"
	"slices"
	"testing"

	"github.com/musehub/posthorn/musehub"
)

func TestEventTypes(t *testing.T) {
	want := []string{"push", "issue", "proposal", "pull_request", "release", "branch", "tag", "session", "analysis"}
	got := musehub.EventTypes()
	if !slices.Equal(got, want) {
		t.Errorf("EventTypes() = %q, want %q", got, want)
	}
	got[0] = "changed"
	if again := musehub.EventTypes(); !slices.Equal(again, want) {
		t.Errorf("EventTypes() = %q after the caller changed its slice", again)
	}
	if musehub.Ping != "ping" {
		t.Errorf("Ping = %q", musehub.Ping)
	}
}

// TestPayloads checks the exact bytes of each payload, and that a receiver gets
// back from them what was sent.
func TestPayloads(t *testing.T) {
	tests := []struct {
		payload any
		want    string
	}{
		{
			musehub.PushPayload{RepoID: "r1", Branch: "main", HeadCommitID: "c1", PushedBy: "ada", CommitCount: 3},
			`{"repoId":"r1","branch":"main","headCommitId":"c1","pushedBy":"ada","commitCount":3}`,
		},
		{
			musehub.PushPayload{},
			`{"repoId":"","branch":"","headCommitId":"","pushedBy":"","commitCount":0}`,
		},
		{
			musehub.IssuePayload{RepoID: "r1", Action: "opened", IssueID: "i1", Number: 7, Title: "Flat third", State: "open"},
			`{"repoId":"r1","action":"opened","issueId":"i1","number":7,"title":"Flat third","state":"open"}`,
		},
		{
			musehub.ProposalPayload{RepoID: "r1", Action: "merged", ProposalID: "p1", Title: "Bridge", FromBranch: "bridge", ToBranch: "main", State: "merged", MergeCommitID: "c2"},
			`{"repoId":"r1","action":"merged","proposalId":"p1","title":"Bridge","fromBranch":"bridge","toBranch":"main","state":"merged","mergeCommitId":"c2"}`,
		},
		{
			musehub.ProposalPayload{RepoID: "r1", Action: "opened", ProposalID: "p1", Title: "Bridge", FromBranch: "bridge", ToBranch: "main", State: "open"},
			`{"repoId":"r1","action":"opened","proposalId":"p1","title":"Bridge","fromBranch":"bridge","toBranch":"main","state":"open"}`,
		},
		{
			musehub.PullRequestPayload{RepoID: "r1", Action: "merged", PRID: "p1", Title: "Bridge", FromBranch: "bridge", ToBranch: "main", State: "merged", MergeCommitID: "c2"},
			`{"repoId":"r1","action":"merged","prId":"p1","title":"Bridge","fromBranch":"bridge","toBranch":"main","state":"merged","mergeCommitId":"c2"}`,
		},
		{
			musehub.PullRequestPayload{RepoID: "r1", Action: "opened", PRID: "p1", Title: "Bridge", FromBranch: "bridge", ToBranch: "main", State: "open"},
			`{"repoId":"r1","action":"opened","prId":"p1","title":"Bridge","fromBranch":"bridge","toBranch":"main","state":"open"}`,
		},
		{
			musehub.ReleasePayload{RepoID: "r1", Action: "published", ReleaseID: "l1", Tag: "v1", Title: "First pressing"},
			`{"repoId":"r1","action":"published","releaseId":"l1","tag":"v1","title":"First pressing"}`,
		},
		{
			musehub.BranchPayload{RepoID: "r1", Action: "created", Name: "bridge", HeadCommitID: "c1"},
			`{"repoId":"r1","action":"created","name":"bridge","headCommitId":"c1"}`,
		},
		{
			musehub.TagPayload{RepoID: "r1", Action: "deleted", Name: "v1", CommitID: "c1"},
			`{"repoId":"r1","action":"deleted","name":"v1","commitId":"c1"}`,
		},
		{
			musehub.SessionPayload{RepoID: "r1", Action: "started", SessionID: "s1", Title: "Night take"},
			`{"repoId":"r1","action":"started","sessionId":"s1","title":"Night take"}`,
		},
		{
			musehub.AnalysisPayload{RepoID: "r1", Action: "finished", AnalysisID: "a1", Kind: "key", State: "done"},
			`{"repoId":"r1","action":"finished","analysisId":"a1","kind":"key","state":"done"}`,
		},
	}
	for _, tt := range tests {
		got, err := json.Marshal(tt.payload)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != tt.want {
			t.Errorf("%T\n got %s\nwant %s", tt.payload, got, tt.want)
		}
		back := reflect.New(reflect.TypeOf(tt.payload))
		if err := json.Unmarshal(got, back.Interface()); err != nil {
			t.Fatal(err)
		}
		if b := back.Elem().Interface(); b != tt.payload {
			t.Errorf("unmarshaled %+v, want %+v", b, tt.payload)
		}
	}
}

func ExampleProposalPayload() {
	body, err := json.Marshal(musehub.ProposalPayload{
		RepoID:     "r1",
		Action:     "opened",
		ProposalID: "p1",
		Title:      "A bridge in B minor",
		FromBranch: "bridge",
		ToBranch:   "main",
		State:      "open",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", musehub.Proposal, body)
	// Output: proposal: {"repoId":"r1","action":"opened","proposalId":"p1","title":"A bridge in B minor","fromBranch":"bridge","toBranch":"main","state":"open"}
}
