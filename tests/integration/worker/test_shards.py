"""A calibration in shards on real workers: the pipeline is real, the model tiny. Who is lost loses one shard."""

from collections import Counter

from benchmarks.harness.site import Site
from tests.fixtures.worker.shards import (
    SHARDS,
    add,
    assert_succeeded,
    begun,
    make_real,
    news,
    other_than_the_jobs_own,
    ring_for_a_visit,
    weights,
)


def test_a_lost_shard_alone_is_done_again(embedded_site: Site) -> None:
    site = make_real(embedded_site)
    workers = [site.start_worker(), site.start_worker(name="w2")]
    job_id = add(site, enqueue=False)
    lost = ring_for_a_visit(site, job_id)
    other_than_the_jobs_own(site, job_id, workers).kill_tree()
    assert_succeeded(site, job_id)
    expected = dict.fromkeys(range(SHARDS), 1) | {lost: 2}
    assert Counter(number for _, number in begun(site, job_id)) == expected
    told = news(site, job_id)
    assert [one["news"] for one in told] == ["planned", "lost", "done"]
    assert told[1]["number"] == lost
    assert len(site.publications()) == 1
    # by one worker, which is left: the same bytes
    alone = add(site, output="acme/alone")
    assert_succeeded(site, alone)
    assert weights(site, "acme/alone") == weights(site, "acme/smaller")
    assert {who for who, _ in begun(site, alone)} == {"shard"}
