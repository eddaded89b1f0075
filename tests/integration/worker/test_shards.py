"""Calibrations in shards on real workers, with the real pipeline and a tiny model. A lost worker loses one shard."""

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
    start_a_shard_helper,
    weights,
)


def test_only_the_lost_shard_is_computed_again(embedded_site: Site) -> None:
    site = make_real(embedded_site)
    workers = [site.start_worker(), site.start_worker(name="w2")]
    job_id = add(site, enqueue=False)
    lost = start_a_shard_helper(site, job_id)
    other_than_the_jobs_own(site, job_id, workers).kill_tree()
    assert_succeeded(site, job_id)
    expected = dict.fromkeys(range(SHARDS), 1) | {lost: 2}
    assert Counter(number for _, number in begun(site, job_id)) == expected
    events = news(site, job_id)
    assert [one["news"] for one in events] == ["planned", "lost", "done"]
    assert events[1]["number"] == lost
    assert len(site.publications()) == 1
    # by one worker, which is left: the same bytes
    alone = add(site, output="acme/alone")
    assert_succeeded(site, alone)
    assert weights(site, "acme/alone") == weights(site, "acme/smaller")
    assert {who for who, _ in begun(site, alone)} == {"shard"}
