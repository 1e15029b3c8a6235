"""The manifest of two workers: Kubernetes takes it, and its workers find each other."""

import copy
import json

import kubernetes_validate
import pytest
import yaml

from hqc_tf import config, distribute
from tests.support import ROOT

MANIFEST = ROOT / "configs/kubernetes/multi_worker.yaml"
# The one in which all that it uses is stable, and the newest that is known.
VERSIONS = "1.31", "1.37"
DOCUMENTS = list(yaml.safe_load_all(MANIFEST.read_text()))
JOBS = [document for document in DOCUMENTS if document["kind"] == "Job"]


def named(kind):
    (found,) = [document for document in DOCUMENTS if document["kind"] == kind]
    return found


def pod(job):
    return job["spec"]["template"]["spec"]


def container(job):
    (only,) = pod(job)["containers"]
    return only


def tf_config(job):
    (variable,) = [v for v in container(job)["env"] if v["name"] == "TF_CONFIG"]
    return variable["value"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}"
)
def test_kubernetes_takes_each_document(document, version):
    assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["spec"].update(backOffLimit=3),
        lambda job: job["spec"].update(backoffLimit="3"),
        lambda job: pod(job).update(terminationGracePeriodSecond=1),
        lambda job: container(job).pop("name"),
    ],
)
def test_the_validation_is_strict(change):
    job = copy.deepcopy(JOBS[0])
    change(job)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_jobs_differ_in_what_makes_a_worker_alone():
    def without_itself(job):
        job = copy.deepcopy(job)
        task = json.loads(tf_config(job))
        worker = job["metadata"].pop("name"), pod(job).pop("hostname"), task["task"].pop("index")
        container(job)["env"] = [task]
        return worker, job

    workers, rest = zip(*map(without_itself, JOBS), strict=True)
    assert workers == tuple((f"hqc-{index}", f"hqc-{index}", index) for index in range(len(JOBS)))
    assert len(JOBS) > 1 and all(one == rest[0] for one in rest)


def test_workers_find_each_other_by_the_names_that_the_service_gives():
    service = named("Service")
    spec, (port,) = service["spec"], service["spec"]["ports"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    addresses = []
    for job in JOBS:
        assert spec["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
        assert pod(job)["subdomain"] == service["metadata"]["name"]
        assert container(job)["ports"] == [{"containerPort": port["port"]}]
        addresses.append(f"{pod(job)['hostname']}.{pod(job)['subdomain']}:{port['port']}")
    for job in JOBS:
        distribute.check_cluster(tf_config(job))
        assert json.loads(tf_config(job))["cluster"] == {"worker": addresses}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_its_command_is_one_of_ours(job, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert container(job)["command"] == ["python", "-m", "hqc_tf.train"]
    arguments = container(job)["args"]
    (workdir,) = [a for a in arguments if a.startswith("--workdir=")]
    settings, rest = config.parse([a for a in arguments if a != workdir])
    assert (settings.strategy, rest) == ("multi_worker", [])
    assert settings.batch_size % len(JOBS) == 0
    assert f"--checkpoint_steps={settings.checkpoint_steps}" in arguments
    claim = named("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (shared,) = [v["name"] for v in pod(job)["volumes"] if "persistentVolumeClaim" in v]
    (mount,) = [v["mountPath"] for v in container(job)["volumeMounts"] if v["name"] == shared]
    assert workdir.startswith(f"--workdir={mount}/")
    assert settings.data_dir.startswith(f"{mount}/")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_it_starts_again_unless_a_person_has_to_mend_something(job):
    assert pod(job)["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] >= 10
    fail, ignore = job["spec"]["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [2])
    assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == (
        "Ignore",
        "DisruptionTarget",
    )
    # SIGTERM reaches a process that is not the first of its kind, and nothing waits for it.
    assert pod(job)["shareProcessNamespace"] is True
    assert pod(job)["terminationGracePeriodSeconds"] <= 10
