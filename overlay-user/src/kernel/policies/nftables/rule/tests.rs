//! Expressions that the kernel of the test machine may not have.

use super::*;

fn other(name: &str, attributes: Vec<DefaultNla>) -> ListAttribute<ExpressionAttribute> {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
    .into()
}

fn read(expressions: Vec<ListAttribute<ExpressionAttribute>>) -> Rule {
    let scope = Scope {
        network: "10.244.0.0/16".parse().expect("a network"),
        devices: ["cni0".to_owned()].into(),
        ports: [].into(),
    };
    let attributes = [RuleAttribute::Expressions(expressions)];
    rule(Family::Inet, &attributes, &scope)
}

fn act(what: &str) -> Effect {
    Effect::Act(what.to_owned())
}

/// The effect of a rule of kube-network-policies, and of a rule with an unknown expression.
#[test]
fn queues_and_what_nobody_knows_count() {
    let found = read(vec![other("ct", vec![]), other("queue", vec![])]);
    assert_eq!(found.effect, act("queue"));
    assert_eq!(found.matches, Match::Maybe);
    assert_eq!(
        read(vec![other("of_tomorrow", vec![])]).effect,
        act("of_tomorrow")
    );
    assert_eq!(read(vec![other("notrack", vec![])]).effect, act("notrack"));
}

#[test]
fn counters_by_name_do_not_count_and_helpers_by_name_do() {
    let object = |kind: u32| {
        let kind = DefaultNla::new(NFTA_OBJREF_IMM_TYPE, kind.to_be_bytes().to_vec());
        read(vec![other("objref", vec![kind])]).effect
    };
    assert_eq!(object(NFT_OBJECT_COUNTER), Effect::Nothing);
    assert_eq!(object(3), act("objref"));
}

#[test]
fn verdicts_with_a_number_are_told_by_their_low_bits() {
    let verdict = |code: u32| {
        let code = VerdictAttribute::Code(Verdict::Other(code));
        let data = Immediate::Data(DataAttribute::Verdict(vec![code]));
        read(vec![Expressions::Immediate(vec![data]).into()]).effect
    };
    assert_eq!(verdict(NF_ACCEPT), Effect::Accept);
    assert_eq!(verdict(NF_DROP | 5 << 16), act("drop"));
    assert_eq!(verdict(3 | 9 << 16), act("a verdict of another kind"));
}
