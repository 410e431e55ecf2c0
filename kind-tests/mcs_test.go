package kindtests

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scenarios say what a clusterset does by the Multi-Cluster Services API, in the words of its users. The clusters are ap, eu and us;
// each scenario has a namespace of its own, $ns, which is made where it says so.
//
//	namespace CLUSTER...                 $ns stands in these clusters from here on
//	apply CLUSTER... FILE                kubectl apply -f FILE, with $variables replaced
//	together CLUSTER... FILE             kubectl create -f FILE, with all objects made in one and the same second
//	tick                                 returns in the next second: what is made from here on is younger
//	kubectl CLUSTER ARGS...              kubectl in $ns
//	exports NAME FILE                    waits until the ServiceExports of that name are, in all clusters, as FILE says
//	imports NAME FILE                    likewise the ServiceImports
//	slices NAME FILE                     likewise the EndpointSlices of the imports
//	still exports|imports NAME FILE      waits until every cluster has heard, and written, all that was declared before; then it must be so
//	isthmus CLUSTER[,CLUSTER] ARGS...    asks the control plane of the cluster, or of several
//	eventually REGEXP COMMAND...         repeats kubectl or isthmus until what it prints matches
//	save NAME                            what was printed last, as $NAME
//
// Every wait ends after 20 s, as in the conformance suite of that API. In FILE, clusters that see the same stand together; a line for
// each property that is not as Kubernetes has it by default (view_test.go).
func TestMCS(t *testing.T) {
	m := theMesh(t)
	// More at once than this would only be slower, and a wait is for the mesh, not for a turn.
	testscript.Run(t, m.scenarios("testdata/mcs", 4))
}

// The scenarios of testdata/faults stop what the others rely on, so they come one after the other. In addition they have:
//
//	control kill|stop|start CLUSTER      SIGKILL; SIGTERM; starts it with what it has on disk
//	control forget CLUSTER               of one that is dead: what it has on disk of its peers is lost
//	apiserver kill|start CLUSTER         SIGKILL; starts it, over the same etcd
func TestFaults(t *testing.T) {
	m := theMesh(t)
	t.Cleanup(func() { // after the last scenario: they are parallel tests, which begin when this function has returned
		if err := m.settle(context.Background()); err != nil {
			t.Errorf("the scenarios did not leave the mesh as it was: %v", err)
		}
	})
	testscript.Run(t, m.scenarios("testdata/faults", 1))
}

func (m *mesh) scenarios(dir string, atOnce int) testscript.Params {
	turns := make(chan struct{}, atOnce)
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                commands,
		Setup: func(env *testscript.Env) error {
			turns <- struct{}{}
			release := sync.OnceFunc(func() { <-turns })
			env.Defer(release)
			s := newScenario(m)
			s.alone = atOnce == 1
			env.Values[scenarioKey{}] = s
			env.Setenv("ns", s.namespace)
			fail := env.T().Fatal
			env.Defer(func() {
				if !s.alone {
					release() // what follows is waiting: a namespace takes five seconds to go, however little is in it
				}
				if err := s.close(); err != nil {
					fail(err)
				}
			})
			return nil
		},
	}
}

type scenarioKey struct{}

// keep reports whether namespaces stay after their scenario, to be looked at.
func keep() bool { return strings.TrimSpace(os.Getenv("ISTHMUS_KEEP_SCENARIOS")) != "" }
